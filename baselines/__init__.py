"""Baselines that training must beat: hosted models over their API, and constant answers that ignore the picture."""
