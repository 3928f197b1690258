"""A standalone program that uses only the standard library: it confines itself, then runs the given program."""
