"""The table of model families, and what follows from it: pixels, positions, tokens, processors and sizes."""
