"""Data sets: one row schema (`schema`), one module per source format, checks, statistics, mixing."""
