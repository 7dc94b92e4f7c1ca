"""verl's worker process of one rank, with `VisionEngine` as its actor and reference."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import zmq
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.trainer.ppo.core_algos import kl_penalty
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.padding import response_from_nested

import vision_rl.actor.losses  # noqa: F401 (registers them)
from vision_rl.actor.engine import VisionEngine, mend_positions
from vision_rl.actor.on_policy import OnPolicy
from vision_rl.actor.papo import papo_loss
from vision_rl.actor.patches import patch_verl
from vision_rl.errors import UserError
from vision_rl.models.pixels import Pixels
from vision_rl.models.processor import load_processor
from vision_rl.platform.rendezvous import workers_meet_by_file
from vision_rl.settings import AppSettings

WEIGHT_SECONDS = float(os.environ.get("VISION_RL_WEIGHT_SECONDS", "300"))
"""The longest wait for a model server while weights are sent."""


class VisionTrainingWorker(TrainingWorker):
    """Meets its other ranks where the run says, and starts gloo itself on a CPU: verl would ask for "cpu:gloo,cpu:gloo", a
    device named twice (utils/distributed.py:89)."""

    def __init__(self, config: Any) -> None:
        patch_verl()
        workers_meet_by_file()
        if get_device_name() == "cpu" and not torch.distributed.is_initialized():
            torch.distributed.init_process_group(
                "gloo",
                rank=int(os.environ["RANK"]),
                world_size=int(os.environ["WORLD_SIZE"]),
                init_method=os.environ.get("DIST_INIT_METHOD"),
            )
        super().__init__(config)

    def train_mini_batch(self, data: Any) -> Any:
        if self.engine.pixels is not None:
            self.engine.pixels.draw()
        mend_positions(data)
        rows = len(data) * self.engine.get_data_parallel_size() // tu.pop(data, key="updates", default=1)
        tu.assign_non_tensor(data, mini_batch_size=rows, global_batch_size=rows)
        return super().train_mini_batch(data)

    def infer_batch(self, data: Any) -> Any:
        mend_positions(data)
        use_row_temperatures(data)
        fit_micro_batches(data, self.engine_config.infer_micro_batch_size_per_gpu)
        return super().infer_batch(data)

    def train_batch(self, data: Any) -> Any:
        mend_positions(data)
        use_row_temperatures(data)
        fit_micro_batches(data, self.engine_config.micro_batch_size_per_gpu)
        return super().train_batch(data)

    def sight(self, data: Any) -> dict[str, float]:
        """How far this model's log-probabilities of `data`'s replies move when the pictures are black, over all ranks' rows.

        `sight/logprob_gap`: their mean difference in nats, what a picture makes the chosen token more likely by. `sight/kl`:
        the mean of verl's k3 estimate (Schulman 2020), which is never negative, and which the rounding of bfloat16 (0.01
        nats) moves by 1e-4 only. `sight/rows`: the number of rows. Rows whose `old_log_probs` are known are not computed
        again with their pictures. Empty on a rank that others of its sequence parallelism answer for.
        """
        seeing = data["old_log_probs"] if "old_log_probs" in data else self._responses(data, "seen")
        blind = self._responses(data, "blank")
        if seeing is None or blind is None:
            return {}
        own = data["response_mask"].values().bool()
        seeing, blind = seeing.values()[own].float(), blind.values()[own].float()
        kl = kl_penalty(seeing, blind, "low_var_kl")
        sums = torch.tensor([(seeing - blind).sum(), kl.sum(), own.sum(), len(data)], device=get_device_name())
        torch.distributed.all_reduce(sums, group=self.engine.get_data_parallel_group())
        gap, distance, tokens, rows = sums.tolist()
        return {"sight/logprob_gap": gap / max(tokens, 1), "sight/kl": distance / max(tokens, 1), "sight/rows": rows}

    def _responses(self, data: Any, view: str) -> torch.Tensor | None:
        """Nested log-probabilities of the responses, (rows, their lengths), with the pictures shown as `view` says."""
        tu.assign_non_tensor(data, view=view, calculate_entropy=False, compute_loss=False)
        output = self.infer_batch(data)
        return None if output is None else response_from_nested(output["log_probs"], data["response_mask"])


def fit_micro_batches(data: Any, most: int | None) -> None:
    """Split a batch into equal micro-batches of at most `most` rows: verl refuses a batch that `most` does not divide
    (workers/engine/utils.py:125), and how many rows a step has is not known before its rollouts are done."""
    if most is not None:
        fitting = next(size for size in range(min(most, len(data)), 0, -1) if len(data) % size == 0)
        tu.assign_non_tensor(data, micro_batch_size_per_gpu=fitting)


def use_row_temperatures(data: Any) -> None:
    """Let the engine divide each row's logits by the temperature at which its reply was sampled, in place.

    verl's trainer names one temperature for a batch, the run's; its engines also take one for each row. An agent may ask for
    its own. Rows of one temperature keep verl's single number, which saves a copy of the logits where it is 1.
    """
    temperatures = tu.get(data, "sampling_temperature", default=None)
    if temperatures is None:
        return
    if len(set(temperatures)) == 1:
        tu.assign_non_tensor(data, temperature=temperatures[0])
    else:
        data.set("temperature", torch.tensor(temperatures, device=data["input_ids"].device))


class VisionWorker(ActorRolloutRefWorker):
    """A rank of actor, rollout and reference."""

    actor_worker_cls = VisionTrainingWorker
    ref_worker_cls = VisionTrainingWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        VisionEngine.freezes_tower = bool(self.config.actor.get("freeze_vision_tower", False))
        if self.config.rollout.name == "sglang":
            from vision_rl.actor.sglang_weights import prepare

            prepare()
        super().init_model()

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def sight(self, data: Any) -> Any:
        """The actor's `VisionTrainingWorker.sight`, as metrics: nothing of it is written into the queue."""
        return tu.get_tensordict(tensor_dict={}, non_tensor_dict={"metrics": self.actor.sight(data)})

    @register(dispatch_mode=Dispatch.ONE_TO_ALL, blocking=False)
    async def update_weights(self, global_steps: int | None = None, mode: str = "auto") -> Any:
        """As upstream, with a deadline: verl's sender would wait for ever for a server that failed to load the weights.

        The server's own error stands in its log. Raises `UserError`.
        """
        zmq.Context.instance().setsockopt(zmq.RCVTIMEO, int(1000 * WEIGHT_SECONDS))  # of sockets from now on
        try:
            return await super().update_weights(global_steps=global_steps, mode=mode)
        except zmq.Again as error:
            raise UserError(
                f"the model server did not take the new weights within {WEIGHT_SECONDS:.0f} s; logs/ of the run directory "
                "has what it printed; go on with --resume"
            ) from error

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def open_pictures(
        self, picture_dir: str, limits: dict[str, int], *, app: AppSettings, banned_tokens: list[int], alone: bool
    ) -> None:
        """Tell the engines where the run's pictures are, which tokens the server never samples, and the actor's its loss.

        The batch names its pictures; every rank opens and processes those of its own samples, each once. alone: nothing
        else computes while the ranks do, so that on CPUs they share all cores; OMP_NUM_THREADS=1 is the server's.
        """
        if alone and get_device_name() == "cpu":
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // torch.distributed.get_world_size()))
        model = self.config.model
        processor = load_processor(model.path, trust_remote_code=model.get("trust_remote_code", False))
        blank, masked = app.blank_pixels, app.papo.mask_ratio
        pixels = Pixels(processor, Path(picture_dir), limits=limits, blank=blank, masked=masked)
        for worker in (self.actor, self.ref):
            if worker is not None:
                worker.engine.pixels = pixels
                worker.engine.banned_tokens = torch.tensor(banned_tokens, dtype=torch.long)
                if app.shared_prompt and worker.engine.unshared:
                    raise UserError(
                        f"app.shared_prompt=true, but this model cannot share prompts: {worker.engine.unshared}; leave it at null"
                    )
                worker.engine.shares_prompts = app.shared_prompt or (
                    app.shared_prompt is None and get_device_name() == "cpu"
                )
        if self.actor is None:
            return
        settings = self.loss_fn.keywords["config"]
        self.actor.engine.on_policy = OnPolicy(app.integrity, settings.entropy_coeff)
        if app.papo.kl_coef:
            self.actor.engine.papo = partial(papo_loss, papo=app.papo, config=settings)
