"""Scripts that are run by hand and ship in no wheel: the recipes of the tiny models."""
