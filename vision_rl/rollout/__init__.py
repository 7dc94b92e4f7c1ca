"""Agent Lightning's side: store, runners, workers, and the proxy between agents and model servers."""

from vision_rl.rollout.lightning import without_litellm

without_litellm()
