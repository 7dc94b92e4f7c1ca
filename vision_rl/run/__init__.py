"""A run directory: what is written into it and read from it."""
