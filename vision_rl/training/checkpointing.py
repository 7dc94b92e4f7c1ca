"""Save a step, continue a run from it, and save what can be saved when the model server dies."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import transfer_queue as tq
from torchdata.stateful_dataloader import StatefulDataLoader

from vision_rl.run.checkpoints import Checkpoints
from vision_rl.run.log import RunLog
from vision_rl.training.health import ModelDied
from vision_rl.training.rollout_manager import RolloutManager
from vision_rl.training.supervisor import Supervisor


class Checkpointing:
    """The part of `VisionTrainer` that takes the place of verl's `_save_checkpoint` and `_load_checkpoint`."""

    config: Any
    log: RunLog
    checkpoints: Checkpoints
    supervisor: Supervisor
    rollouts: RolloutManager
    train_dataloader: StatefulDataLoader
    trainer_mode: str
    global_steps: int
    actor_rollout_wg: Any
    checkpoint_manager: Any
    queue_is_up: Callable[[], None]
    _weights_arrive: Callable[[], AbstractContextManager[None]]

    def _save_checkpoint(self) -> None:
        self._save(self.global_steps, self.train_dataloader.state_dict())

    def _save(self, step: int, data: dict[str, Any]) -> None:
        """Weights, optimizer, order of the data, random states; asynchronous modes keep what is in the queue as well."""
        if self.checkpoints.has(step):
            return
        started = time.monotonic()
        with self.checkpoints.writing(step) as folder:
            self.actor_rollout_wg.save_checkpoint(str(folder / "actor"), None, step)
            generator: Any = np.random.get_state()
            states = {
                "python": random.getstate(),
                "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in generator],
                "torch": torch.get_rng_state(),
            }
            torch.save({"data": data, "random": states}, folder / "trainer.pt")
            if self.trainer_mode != "sync":
                tq.save_checkpoint(str(folder / "transfer_queue"), metadata={"global_steps": step})
        self.log.event("checkpoint", step=step, seconds=time.monotonic() - started)

    def _load_checkpoint(self) -> None:
        """Continue from the newest whole checkpoint, if the run resumes one and has one."""
        self.queue_is_up()
        self.global_steps = 0
        if self.config.trainer.resume_mode != "auto":
            return
        self.checkpoints.clear_leftovers()
        folder = self.checkpoints.latest()
        self.supervisor.rewind(-1 if folder is None else self.checkpoints.step_of(folder))
        if folder is None:
            return
        self._load_weights(folder)
        kept = torch.load(folder / "trainer.pt", weights_only=True)
        self.train_dataloader.load_state_dict(kept["data"])
        random.setstate(kept["random"]["python"])
        np.random.set_state(tuple(kept["random"]["numpy"]))
        torch.set_rng_state(kept["random"]["torch"])
        self.global_steps = self.checkpoints.step_of(folder)
        if self.trainer_mode != "sync" and (folder / "transfer_queue").exists():
            tq.load_checkpoint(str(folder / "transfer_queue"))
            self._ask_again()

    def _ask_again(self) -> None:
        """Let verl's loop queue every prompt of a restored queue anew, those included whose rollouts were done.

        Their samples are of older weights, and nothing here knows their rollouts any more, of which a step's record is made.
        """
        prompts = {
            key: tag for key, tag in (tq.kv_list("train") or {}).get("train", {}).items() if tag.get("is_prompt")
        }
        if prompts:
            tags = [{**tag, "status": "pending"} for tag in prompts.values()]
            tq.kv_batch_put(keys=list(prompts), partition_id="train", tags=tags)
        self._restored_tq_prompt_count = len(prompts)  # verl then draws so many prompts fewer ahead

    def _load_weights(self, folder: Path) -> None:
        self.actor_rollout_wg.load_checkpoint(local_path=str(folder / "actor"))

    def _restore(self, folder: Path) -> None:
        """Weights and optimizer of a checkpoint, for the actor and for the server, which has this step's already."""
        self._load_weights(folder)
        with self._weights_arrive():
            self._send_weights()

    def _send_weights(self) -> None:
        self.checkpoint_manager.sleep_replicas()
        self.checkpoint_manager.update_weights(self.global_steps)

    @contextmanager
    def _saved_if_the_server_dies(self, *, done: bool = False) -> Iterator[None]:
        """Around a step, or around the validation after one that is `done`: keeps what is trained."""
        data = self.train_dataloader.state_dict()
        try:
            yield
        except (ModelDied, ray.exceptions.RayError) as error:
            died = self.rollouts.death(error)
            if died is None:
                raise
            step = self.global_steps if done else self.global_steps - 1
            saved = "no step was done yet, start the run again"
            if step:
                self._save(step, data)
                saved = f"step {step} is saved, go on with --resume"
            raise ModelDied(f"{died}; what it said last is in logs/ of the run directory; {saved}") from error
