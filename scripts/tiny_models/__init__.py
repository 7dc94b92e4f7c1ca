"""Recipes of the tiny models: the two checkpoints in this repository, and one model per family for tests."""
