"""Reinforcement learning of vision-language agents on Agent Lightning, verl and vLLM."""

import sys

from vision_rl.errors import say_what_is_missing
from vision_rl.lean_import import install

sys.excepthook = say_what_is_missing
install()
