"""Trainers and ranks as a run constructs them, on the tiny model and without Ray: their processes start in `init` only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tests.actor import process_group
from vision_rl.actor.rank import VisionWorker
from vision_rl.config.resolve import resolve
from vision_rl.rollout.addresses import private
from vision_rl.settings import AgentSettings, AppSettings
from vision_rl.tiny import checkpoint_dir
from vision_rl.training.context import RunContext
from vision_rl.training.modes import trainer_class

CORRECTED = "algorithm.rollout_correction.rollout_is=token"
ASYNCHRONOUS = ("trainer.v1.trainer_mode=colocate_async", CORRECTED)
SERVERS = "actor_rollout_ref.rollout"
APART = (f"{SERVERS}.nnodes=1", f"{SERVERS}.n_gpus_per_node=1", f"{SERVERS}.checkpoint_engine.backend=nccl")
SEPARATE = ("trainer.v1.trainer_mode=separate_async", *APART, CORRECTED)


def new_tree(*overrides: str) -> DictConfig:
    """verl's configuration of a run of the CPU preset."""
    return OmegaConf.create(resolve("cpu", list(overrides), task="vqa", model=str(checkpoint_dir())).verl)


def new_context(run_dir: Path, app: AppSettings | None = None) -> RunContext:
    return RunContext(run_dir, app or AppSettings(), {"vqa": AgentSettings()}, private(0))


def new_trainer(
    run_dir: Path, app: AppSettings, *overrides: str, train: Sequence[str] = (), val: Sequence[str] = ()
) -> Any:
    """The trainer of the mode that `overrides` ask for; `train` and `val` are tasks as JSON text."""
    tree, store = new_tree(*overrides), None
    made = trainer_class(tree.trainer.v1.trainer_mode)
    return made(tree, new_context(run_dir, app), store, list(train), list(val))  # type: ignore[arg-type]


def new_rank(*overrides: str) -> VisionWorker:
    """A rank of actor, rollout and reference before it loads a model."""
    process_group()
    return VisionWorker(new_tree(*overrides).actor_rollout_ref, role="actor_rollout_ref")
