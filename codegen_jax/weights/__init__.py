"""Reading and writing a model's weights in any format."""
