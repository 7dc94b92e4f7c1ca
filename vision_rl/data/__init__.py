"""Data sets: one row schema (`schema`), one way to open images (`images`), and one module per source format."""
