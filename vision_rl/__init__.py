"""Reinforcement learning of vision-language agents on Agent Lightning, verl and vLLM."""

import sys

from vision_rl.errors import say_in_one_line
from vision_rl.lean_import import install

sys.excepthook = say_in_one_line
install()
