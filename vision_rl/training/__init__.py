"""verl's side: its V1 trainer with our rollout manager, batch, advantages, mismatch limit, records and checkpoints."""

import vision_rl.rollout  # noqa: F401  # takes litellm out of Agent Lightning, before anything here imports that
