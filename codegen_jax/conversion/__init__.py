"""Other formats' weights to and from our parameter tree."""
