"""The trainer: verl's V1 trainer with our rollout manager, batches, advantages, mismatch limit and records."""
