"""Convert weights between our parameter tree and other formats, and verify the result."""
