"""Reinforcement learning of vision-language agents on Agent Lightning, verl and vLLM."""
