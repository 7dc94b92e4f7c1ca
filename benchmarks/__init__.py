"""Benchmarks that are run by hand. Each script says in its first lines what it measures and how to run it."""
