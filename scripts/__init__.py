"""What is run by hand and ships in no wheel: the recipes of the tiny models."""
