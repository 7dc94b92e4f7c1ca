"""Reinforcement learning of vision-language agents on Agent Lightning, verl and vLLM."""

from vision_rl.lean_import import install

install()
