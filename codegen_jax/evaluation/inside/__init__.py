"""What runs inside the sandbox: stands alone, on the standard library, and numpy where it is given."""
