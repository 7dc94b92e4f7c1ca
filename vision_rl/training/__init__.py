"""verl's side: its V1 trainer with our rollout manager, batch, advantages, mismatch limit and records."""
