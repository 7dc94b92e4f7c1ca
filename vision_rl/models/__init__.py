"""Model families: the table, and what follows from it: pixels, positions, tokens, processors, sizes."""
