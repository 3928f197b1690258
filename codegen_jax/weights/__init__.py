"""A model's weights: where they come from and go to, in any format."""
