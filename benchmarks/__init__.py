"""Measurements that are run by hand: each script says in its first lines what it measures and how to run it."""
