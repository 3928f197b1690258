"""The code that runs inside the sandbox. It uses only the standard library, and NumPy if provided."""
