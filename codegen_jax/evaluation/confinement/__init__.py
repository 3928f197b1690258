"""A program of its own, of Python's standard library alone: it confines itself and becomes what it was told to run."""
