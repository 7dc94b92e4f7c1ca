"""The configuration: what is known, refused, derived and checked."""
