"""MiniGrid (Farama) through the gymnasium adapter: the model sees a room and names one step at a time.

    python data_utils.py episodes minigrid --train 64 --val 16 --output data/minigrid
    python train_agent.py --task minigrid --data-path data/minigrid/train.parquet --val-data-path data/minigrid/val.parquet

Needs `pip install .[minigrid]`. A row's `env` (`--envs MiniGrid-DoorKey-5x5-v0:30`) takes the place of the room here.
"""

from __future__ import annotations

from vision_rl.agent.environment import Environment
from vision_rl.tasks import Task

TASK = Task(
    name="minigrid",
    environment=Environment.of(
        "MiniGrid-Empty-Random-5x5-v0",
        package="minigrid",
        prompt="You are the red triangle: {mission}.",
        actions=("left", "right", "forward", "pickup", "drop", "toggle"),
        turns=10,
        history=2,
    ),
)
