"""The training loop: rollouts, log-probabilities, GRPO advantages, update; validation and checkpoints between the steps.

Subclasses Agent Lightning 0.3.0's `AgentLightningTrainer` (itself verl's `RayPPOTrainer`) and keeps its workers and its
rollout manager. `fit` and `_train_step` are rewritten because upstream's (agentlightning/verl/trainer.py:226-549) offer no
place to compare log-probabilities, to count a rollout of several turns once in its group, to stop, or to write files.
Left out, because no preset uses them: critics, reward models, ReMax baselines.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc import locate
from typing import Any

import numpy as np
import ray
import torch
from agentlightning.verl.trainer import AgentLightningTrainer
from omegaconf import OmegaConf
from verl import DataProto
from verl.protocol import pad_dataproto_to_divisor, unpad_dataproto
from verl.trainer.ppo.core_algos import agg_loss
from verl.trainer.ppo.metric_utils import compute_data_metrics, compute_throughout_metrics, compute_timing_metrics
from verl.utils.metric import reduce_metrics

from vision_rl.engine.advantages import group_metrics, pad_masked, rollout_advantages
from vision_rl.engine.best import VALIDATED
from vision_rl.engine.checkpoints import Checkpoints
from vision_rl.engine.context import RunContext
from vision_rl.engine.daemon import VisionDaemon
from vision_rl.engine.mismatch import check_mismatch, mismatch_metrics, reference_metrics
from vision_rl.engine.supervisor import Supervisor
from vision_rl.engine.tracking import tracking
from vision_rl.engine.vitals import ModelDied
from vision_rl.gpu import GpuMeter
from vision_rl.telemetry import RunLog
from vision_rl.tokens import forbidden_token_ids


class VisionTrainer(AgentLightningTrainer):
    """GRPO over parallel runners with an actor that sees."""

    def __init__(self, *, run: RunContext, **kwargs: Any) -> None:
        super().__init__(daemon_cls=locate(run.daemon), llm_proxy=None, adapter=None, **kwargs)
        self.run = run
        self.log = RunLog(run.run_dir)
        self.checkpoints = Checkpoints(run.run_dir / "checkpoints", run.app.checkpoints)
        self.timing: dict[str, float] = {}
        saves = self.config.trainer.save_freq > 0
        self.supervisor = Supervisor(run.app, self.log, self.checkpoints, saves=saves)

    def init_workers(self) -> None:
        self.log.event("phase", text="starting the model's workers and its server")
        super().init_workers()
        self.log.event("phase", text="the model is served; starting the LLM proxy")

    def fit(self) -> None:
        """Train until `trainer.total_training_steps`, or until the run is asked to stop."""
        trainer = self.config.trainer
        self.global_steps = self._resume() if trainer.resume_mode == "auto" else 0
        tree = OmegaConf.to_container(self.config, resolve=True)
        if self.global_steps == 0:
            self.actor_rollout_wg.load_checkpoint(None)  # verl offloads model and optimizer here
        self.agent_mode_daemon = self._start_daemon()
        self.batches = self._batches()
        self.gpu = GpuMeter()
        with tracking(trainer, tree, self.run.run_dir, self.global_steps) as self.tracking, self.gpu:
            if trainer.val_before_train and self.global_steps == 0:
                self._record(self._validate())
            self._loop()
        self.log.event("finished", step=self.global_steps, reason=self.supervisor.stop_reason() or "all steps done")

    def _loop(self) -> None:
        trainer = self.config.trainer
        while self.global_steps < self.total_training_steps and not self.supervisor.stop_reason():
            self.global_steps += 1
            with self._saved_if_the_server_dies():
                metrics = self._train_step(next(self.batches))
            last = self.global_steps >= self.total_training_steps or bool(self.supervisor.stop_reason())
            if trainer.test_freq > 0 and (last or self.global_steps % trainer.test_freq == 0):
                with self._saved_if_the_server_dies(metrics):
                    metrics.update(self._validate())
            self._record(metrics)
            self.supervisor.watch(self.global_steps, metrics, self._load)
            due = last or self.supervisor.early_stop or self.global_steps % trainer.save_freq == 0
            if trainer.save_freq > 0 and due:
                self._save()

    def _train_step(self, batch_dict: dict[str, Any]) -> dict[str, float]:
        self.timing = {}
        with self._timed("step"):
            batch, metrics = self._rollouts(batch_dict)
            batch, measured = self._log_probs(batch)
            metrics.update(measured)
            check_mismatch(metrics, self.run.app.integrity, self.global_steps)
            metrics.update(self._advantages(batch))
            metrics.update(self._update(batch))
        metrics.update(compute_data_metrics(batch=batch, use_critic=False))
        metrics.update(compute_timing_metrics(batch=batch, timing_raw=self.timing))
        n_gpus = self.resource_pool_manager.get_n_gpus()
        metrics.update(compute_throughout_metrics(batch=batch, timing_raw=self.timing, n_gpus=n_gpus))
        metrics.update(self.gpu.read())
        return metrics

    def _rollouts(self, batch_dict: dict[str, Any]) -> tuple[DataProto, dict[str, float]]:
        """New weights to the server, then `rollout.n` rollouts of every task, then the batch."""
        with self._timed("gen"):
            with self._timed("weight_sync"):
                self.async_rollout_manager.wake_up()
            with self._timed("generate"):
                self._run_tasks(batch_dict, is_train=True)
                filtered = self._replace_equal_groups()
            with self._timed("batch"):
                longest_prompt, longest_response = sample_limits(self.config)
                batch, metrics = self.agent_mode_daemon.get_train_data_batch(
                    max_prompt_length=longest_prompt,
                    max_response_length=longest_response,
                    device=torch.device("cpu"),
                    global_steps=self.global_steps,
                )
            metrics["train/groups_filtered"] = filtered
            self.agent_mode_daemon.clear_data_and_server()
            with self._timed("sleep"):
                self.async_rollout_manager.sleep()
        batch.meta_info["global_token_num"] = batch.batch["attention_mask"].sum(dim=-1).tolist()
        batch.meta_info["temperature"] = self.config.actor_rollout_ref.rollout.temperature
        batch.meta_info["multi_turn"] = False
        return batch, metrics

    def _run_tasks(self, batch_dict: dict[str, Any], *, is_train: bool) -> None:
        addresses = self.async_rollout_manager.server_addresses
        self.agent_mode_daemon.step = self.global_steps
        self.agent_mode_daemon.set_up_data_and_server(batch_dict, addresses, is_train=is_train)
        self.agent_mode_daemon.run_until_all_finished(verbose=False)

    def _replace_equal_groups(self) -> int:
        """Dynamic sampling (DAPO): draw other tasks for groups without spread, a limited number of times.

        verl has this in its DAPO recipe only. The last round's groups are kept as they are, so that there is a batch.
        """
        rule, filtered = self.run.app.filter_groups, 0
        for _ in range(rule.max_rounds - 1 if rule.enable else 0):
            missing = self.agent_mode_daemon.drop_equal_groups()
            if not missing:
                break
            filtered += missing
            self._run_tasks({"task": next(self.batches)["task"][:missing]}, is_train=True)
        return filtered

    def _log_probs(self, batch: DataProto) -> tuple[DataProto, dict[str, float]]:
        """The actor's (and the reference's) log-probabilities, and how far the actor's are from the rollout's."""
        padded, pad_size = pad_dataproto_to_divisor(batch, self.actor_rollout_wg.world_size)
        with self._timed("old_log_prob"):
            computed = self.actor_rollout_wg.compute_log_prob(padded)
        entropy = (
            unpad_dataproto(computed, pad_size).batch.pop("entropys") if pad_size else computed.batch.pop("entropys")
        )
        padded = padded.union(computed)
        if self.use_reference_policy:
            with self._timed("ref"):
                padded = padded.union(self._compute_reference_log_prob(padded))
        batch = unpad_dataproto(padded, pad_size)
        mask = batch.batch["response_mask"]
        mode = self.config.actor_rollout_ref.actor.loss_agg_mode
        metrics = {
            **mismatch_metrics(batch),
            **reference_metrics(batch),
            "actor/entropy": agg_loss(loss_mat=entropy[: len(batch)], loss_mask=mask, loss_agg_mode=mode).item(),
        }
        return batch, metrics

    def _advantages(self, batch: DataProto) -> dict[str, float]:
        with self._timed("adv"):
            batch.batch["token_level_rewards"] = batch.batch["token_level_scores"]
            advantages = rollout_advantages(batch, self.config.algorithm)
            batch.batch["advantages"] = batch.batch["returns"] = advantages
        return group_metrics(batch)

    def _update(self, batch: DataProto) -> dict[str, float]:
        """One pass of policy updates. A partial last mini-batch is trained on, not dropped as upstream does."""
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(self.global_steps))
        batch.reorder(order)
        padded = pad_masked(batch, update_divisor(self.config.actor_rollout_ref, self.actor_rollout_wg.world_size))
        balance: dict[str, float] = {}
        if self.config.trainer.balance_batch and self.actor_rollout_wg.world_size > 1:
            self._balance_batch(padded, metrics=balance)
        with self._timed("update_actor"):
            output = self.actor_rollout_wg.update_actor(padded)
        return {**reduce_metrics(output.meta_info["metrics"]), **balance}

    def _validate(self) -> dict[str, float]:
        """Greedy rollouts of the fixed validation rows."""
        started = time.monotonic()
        batch_dict = next(iter(self.val_dataloader))
        self.async_rollout_manager.wake_up()
        self._run_tasks(batch_dict, is_train=False)
        metrics: dict[str, float] = self.agent_mode_daemon.get_test_metrics()
        self.log.rollouts(r.record(self.global_steps, "val") for r in self.agent_mode_daemon.finished.values())
        self.agent_mode_daemon.clear_data_and_server()
        self.async_rollout_manager.sleep()
        return {**metrics, "timing_s/validate": time.monotonic() - started}

    def _record(self, metrics: dict[str, float]) -> None:
        self.log.metrics(self.global_steps, metrics)
        if VALIDATED in metrics:
            self.supervisor.judge(self.global_steps, metrics, self._save)
        try:
            self.tracking.log(data={name: float(value) for name, value in metrics.items()}, step=self.global_steps)
        except OSError as error:  # a full disk; our own files wait in memory, and the next checkpoint tells
            self.log.event("warning", text=f"trainer.logger did not take step {self.global_steps}: {error.strerror}")

    def _batches(self) -> Iterator[dict[str, Any]]:
        """Training batches without end; the loader's state, kept in checkpoints, continues in the middle of an epoch."""
        while True:
            yield from self.train_dataloader

    def _start_daemon(self) -> VisionDaemon:
        rollout = self.config.actor_rollout_ref.rollout
        daemon: VisionDaemon = self.daemon_cls(
            None,
            rollout.n,
            train_information={"model": self._served_model()},
            tokenizer=self.tokenizer,
            mini_batch_size=self.config.actor_rollout_ref.actor.ppo_mini_batch_size,
            pad_token_id=self.tokenizer.pad_token_id,
            store=self.store,
            processor=self.processor,
            trace_aggregator=self.config.agentlightning.trace_aggregator,
            app=self.run.app,
            pixel_limits=self.run.agent.pixel_limits(),
            run_dir=self.run.run_dir,
            sampling={"temperature": rollout.temperature, "top_p": rollout.top_p},
            forbidden_tokens=forbidden_token_ids(self.processor),
            reach=self.run.reach,
        )
        daemon.start()
        return daemon

    def _served_model(self) -> str:
        """The name to ask the server for. With LoRA, verl's first weight sync carries the base model and only the next ones the
        adapter: an empty round at the start makes sure that every request, also the first after --resume, finds it."""
        model = self.config.actor_rollout_ref.model
        if not model.lora_rank:
            return str(model.path)
        from vision_rl.engine.server import ADAPTER_NAME

        self.async_rollout_manager.wake_up()
        self.async_rollout_manager.sleep()
        return ADAPTER_NAME

    @contextmanager
    def _saved_if_the_server_dies(self, done: dict[str, float] | None = None) -> Iterator[None]:
        """Around a step, or around the validation after one whose metrics are `done`: keeps what is trained.

        The model server is needed before the update only: if it dies in a step, the weights are those of the last one.
        """
        data = self.train_dataloader.state_dict()
        try:
            yield
        except (ModelDied, ray.exceptions.RayError) as error:
            died = self.agent_mode_daemon.death(error)
            if died is None:
                raise
            if done is None:
                self.global_steps -= 1
            else:
                self._record(done)
            saved = "no step was done yet, start the run again"
            if self.global_steps:
                self._save(data)
                saved = f"step {self.global_steps} is saved, go on with --resume"
            raise ModelDied(f"{died}; what it said last is in logs/ of the run directory; {saved}") from error

    def _save(self, data: dict[str, Any] | None = None) -> None:
        """`data`: the state of the data's order, if it is not the one of now."""
        if self.checkpoints.has(self.global_steps):
            return
        started = time.monotonic()
        with self.checkpoints.writing(self.global_steps) as folder:
            self.actor_rollout_wg.save_checkpoint(str(folder / "actor"), None, self.global_steps)
            torch.save(data or self.train_dataloader.state_dict(), folder / "data.pt")
            torch.save(
                {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()},
                folder / "rng.pt",
            )
        self.log.event("checkpoint", step=self.global_steps, seconds=time.monotonic() - started)

    def _load(self, folder: Path) -> None:
        """Weights and optimizer of a checkpoint."""
        self.actor_rollout_wg.load_checkpoint(str(folder / "actor"))

    def _resume(self) -> int:
        """Load the newest whole checkpoint; returns its step, 0 if there is none."""
        self.checkpoints.clear_leftovers()
        folder = self.checkpoints.latest()
        if folder is None:
            self.supervisor.rewind(-1)
            return 0
        self._load(folder)
        self.train_dataloader.load_state_dict(torch.load(folder / "data.pt", weights_only=False))
        states = torch.load(folder / "rng.pt", weights_only=False)
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.set_rng_state(states["torch"])
        step = self.checkpoints.step_of(folder)
        self.supervisor.rewind(step)
        return step

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.timing[name] = self.timing.get(name, 0.0) + time.monotonic() - started


def update_divisor(actor_rollout: Any, world_size: int) -> int:
    """What the number of samples in an update must be a multiple of: every rank gets as many. FSDP's workers take a partial
    last mini-batch; Megatron's refuse one (verl/protocol.py:823)."""
    if actor_rollout.actor.strategy != "megatron":
        return world_size
    return math.lcm(world_size, actor_rollout.actor.ppo_mini_batch_size * actor_rollout.rollout.n)


def sample_limits(config: Any) -> tuple[int, int]:
    """(prompt, response) lengths in tokens above which a sample is dropped, or its response cut, at the level in use.

    At the "trajectory" level a turn that cannot be merged brings its whole prompt: `data.max_prompt_length` bounds it too.
    """
    level = config.agentlightning.trace_aggregator
    if level.level != "trajectory":
        return config.data.max_prompt_length, config.data.max_response_length
    longest = max(level.trajectory_max_prompt_length, config.data.max_prompt_length)
    return longest, level.trajectory_max_response_length
