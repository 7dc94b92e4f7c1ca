"""The trainer of each of verl's modes (`trainer.v1.trainer_mode`)."""

from __future__ import annotations

from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from vision_rl.training.trainer import VisionTrainer


class VisionTrainerSync(VisionTrainer, PPOTrainerSync):
    """Rollouts, then the update, in turns."""


class VisionTrainerOneStepOff(VisionTrainer, PPOTrainerColocateAsync):
    """The next step's rollouts begin before this one's update (`trainer.v1.trainer_mode=colocate_async`)."""


def trainer_class(mode: str) -> type[VisionTrainer]:
    """The trainer of one of verl's modes (`trainer.v1.trainer_mode`)."""
    if mode == "separate_async":
        from vision_rl.training.separate import VisionTrainerSeparate

        return VisionTrainerSeparate
    return {"sync": VisionTrainerSync, "colocate_async": VisionTrainerOneStepOff}[mode]
