"""Recipes: the two checkpoints that the repository holds, and a tiny model of every family for tests."""
