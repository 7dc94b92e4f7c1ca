"""verl's V1 trainer over Agent Lightning's rollouts; this project's additions use verl's hooks.

Added: the limit on |actor - rollout|, the drop rate, records of every rollout, the collapse watch, the best checkpoint,
early and clean stops, checkpoints that are whole or absent, and a save when the model server dies. verl's own loop
(`PPOTrainer.fit`), replay buffer, log-probabilities, rollout correction and update stay as they are.
Left out, because no preset uses them: critics, reward models, distillation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
import transfer_queue as tq
from omegaconf import OmegaConf, open_dict
from tensordict import TensorDict
from torchdata.stateful_dataloader import StatefulDataLoader
from transfer_queue import KVBatchMeta
from verl import DataProto
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch
from verl.trainer.ppo.utils import create_rl_sampler
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.seqlen_balancing import log_seqlen_unbalance
from verl.workers.utils.padding import response_from_nested, response_to_nested

from vision_rl.actor.mismatch import check_mismatch, mismatch_metrics, reference_metrics
from vision_rl.actor.rank import VisionWorker
from vision_rl.config.derived import sample_limits
from vision_rl.data.mix import per_source
from vision_rl.models.pixels import Pixels
from vision_rl.models.processor import check_template_shows_pictures, load_processor
from vision_rl.platform.gpu import GpuMeter
from vision_rl.report.tables import log_rollout_tables
from vision_rl.rollout.proxy import VisionProxy
from vision_rl.run.best import VALIDATED
from vision_rl.run.checkpoints import Checkpoints
from vision_rl.run.log import RunLog
from vision_rl.serving.banned_tokens import banned_tokens
from vision_rl.serving.model_server import start_early
from vision_rl.training.advantages import TOKEN_LEVEL, group_metrics, rollout_advantages
from vision_rl.training.balance import groups_by_rank, padded
from vision_rl.training.checkpointing import Checkpointing
from vision_rl.training.context import RunContext, TrainerStore
from vision_rl.training.replay import replay_buffer
from vision_rl.training.rollout_manager import RolloutManager
from vision_rl.training.rollouts import rollout_metrics
from vision_rl.training.rows import RowBuilder, RowKey
from vision_rl.training.sight import SightGauge
from vision_rl.training.step_metrics import clip_ratios, one_update, updates_of_a_batch
from vision_rl.training.steps import StepRecords
from vision_rl.training.supervisor import Supervisor
from vision_rl.training.tracking import tracking


class VisionTrainer(Checkpointing, PPOTrainer):
    """GRPO over parallel runners with an actor that sees. `modes.py` gives it verl's three modes."""

    worker_class: type = VisionWorker
    role_worker_mapping: dict[Any, Any]
    update_watches = False
    """Whether this step's update brings its own `old_log_probs`, and with them what is watched before an update."""

    def __init__(self, config: Any, run: RunContext, store: TrainerStore, train: list[str], val: list[str]) -> None:
        self.run, self.store = run, store
        self.tasks = {"train": train, "val": val}
        self.log = RunLog(run.run_dir)
        self.checkpoints = Checkpoints(run.run_dir / "checkpoints", run.app.checkpoints)
        self.supervisor = Supervisor(run.app, self.log, self.checkpoints, saves=config.trainer.save_freq > 0)
        self.gpu = GpuMeter()
        super().__init__(config)

    # --- the parts, by verl's own construction hooks -----------------------------------------------------------------

    def _build_replay_buffer(self) -> Any:
        return replay_buffer(self.config, self.run.app.filter_groups, self._add_prompts_to_generate)

    def init(self, queue_is_up: Callable[[], None] = lambda: None) -> None:
        """As upstream; `queue_is_up` is waited for where the queue is needed first."""
        self.queue_is_up = queue_is_up
        self.log.event("phase", text="starting the model's workers and its server")
        # A module of the user's own (`model.external_lib`) is imported with the model, and may replace what a server does.
        alone = self.config.actor_rollout_ref.model.get("external_lib") is None
        if self.config.trainer.device == "cpu" and self.trainer_mode != "separate_async" and alone:
            start_early(self.config.actor_rollout_ref.rollout.name)
        super().init()

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        path = self.config.actor_rollout_ref.model.path
        self.processor = load_processor(path)
        check_template_shows_pictures(self.processor, path)

    def _init_dataloader(self) -> None:
        """As upstream, over rows in memory. A row is one task as JSON text, under the name that verl gives to prompts."""
        data, trainer = self.config.data, self.config.trainer
        one_by_one = self.trainer_mode != "sync" or self.config.algorithm.filter_groups.enable
        with open_dict(self.config):
            data.gen_batch_size = 1 if one_by_one else None
        tasks = self.tasks["train"]
        self.train_dataloader = task_loader(tasks, data, data.gen_batch_size or data.train_batch_size)
        self.train_dataloader_it = None
        self.steps_per_epoch = len(tasks) // data.train_batch_size
        self.total_training_steps = trainer.total_training_steps or self.steps_per_epoch * trainer.total_epochs
        with open_dict(self.config):
            # Steps alone say when a run ends: verl's loop would also stop at the last epoch (trainer_base.py, `fit`).
            trainer.total_epochs = self.total_training_steps // self.steps_per_epoch + 1
            self.config.actor_rollout_ref.actor.optim.total_training_steps = (
                self.total_training_steps * self.parameter_sync_step
            )

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        self.role_worker_mapping = {role: ray.remote(self.worker_class) for role in self.role_worker_mapping}

    def on_init_end(self) -> None:
        """Weights to the server, pictures to the ranks, and the proxy before both."""
        limits = self.run.agent.pixel_limits()
        self.actor_rollout_wg.open_pictures(
            str(self.run.run_dir / "pictures"),
            limits,
            app=self.run.app,
            banned_tokens=banned_tokens(self.config.actor_rollout_ref.model.path, self.processor),
            alone=self.trainer_mode == "sync",
        )
        with self._weights_arrive():
            super().on_init_end()
        self.log.event("phase", text="the model is served; starting the LLM proxy")
        self.rollouts = self._rollout_manager()
        self.rollouts.serve(self._server_addresses())
        self.replay_buffer.rollouts = self.rollouts
        self.records = StepRecords(self.log, self.rollouts, self.run.app.integrity)
        self.sight = SightGauge(self.run.app.sight)

    def _server_addresses(self) -> list[str]:
        return list(self.llm_server_manager.server_addresses)

    def _rollout_manager(self) -> RolloutManager:
        rollout, run = self.config.actor_rollout_ref.rollout, self.run
        pictures = run.run_dir / "pictures"
        addresses = run.addresses
        longest_prompt, longest_response = sample_limits(self.config)
        return RolloutManager(
            store=self.store,
            proxy=VisionProxy(
                self.store,
                pictures,
                host=addresses.host,
                access_host=addresses.address,
                advertised=addresses.advertised,
                port=addresses.proxy_port,
                token=addresses.token,
                media_roots=addresses.media_roots,
                structured_output=run.agent.structured_output,
            ),
            app=run.app,
            agents=run.agents,
            log=self.log,
            rows=RowBuilder(
                self.processor,
                Pixels(self.processor, pictures, limits=run.agent.pixel_limits()),
                max_prompt_length=longest_prompt,
                max_response_length=longest_response,
                temperature=rollout.temperature,
            ),
            n=rollout.n,
            model=self._served_model(),
            sampling={"temperature": rollout.temperature, "top_p": rollout.top_p},
            aggregator=self.config.agentlightning.trace_aggregator,
        )

    def _served_model(self) -> str:
        """The name to ask the server for: the adapter's, once verl has sent one."""
        model = self.config.actor_rollout_ref.model
        if not model.lora_rank or model.lora.get("merge"):
            return str(model.path)
        from vision_rl.serving.vllm_server import ADAPTER_NAME

        return ADAPTER_NAME

    # --- the loop, by its hooks --------------------------------------------------------------------------------------

    def fit(self, agent_loop_manager: Any = None) -> None:
        """Train until `trainer.total_training_steps`, or until the run is asked to stop."""
        trainer = self.config.trainer
        tree = OmegaConf.to_container(self.config, resolve=True)
        with tracking(trainer, tree, self.run.run_dir, self.global_steps) as self.tracking, self.gpu:
            with open_dict(self.config):
                trainer.logger = []  # ours take what a full disk or a tensor would make verl's fail on
                trainer.val_before_train = trainer.val_before_train and self.global_steps == 0
            try:
                super().fit(self.rollouts)
            finally:
                self.records.write_rest()
        reason = self.supervisor.stop_reason() or "all steps done"
        self.log.event("finished", step=min(self.global_steps, self.total_training_steps), reason=reason)

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> KVBatchMeta:
        """As upstream. The model server is needed before the update only: if it dies, the weights are the last step's."""
        with self._saved_if_the_server_dies():
            return super().step(metrics, timing_raw)

    def on_sample_end(self) -> None:
        super().on_sample_end()
        self.rollouts.raise_error()

    def _step_once(self, metrics: dict[str, Any], timing_raw: dict[str, float], sample_batch_size: int) -> KVBatchMeta:
        try:
            return super()._step_once(metrics, timing_raw, sample_batch_size)
        finally:
            self.records.write()

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict[str, Any], **kwargs: Any) -> KVBatchMeta:
        """The first thing that verl does with a sampled batch; what was rolled out is counted here, before it is padded.

        As upstream, with the rows of a group on one rank and one after the other: an actor computes their prompt once.
        """
        metrics.update(self.records.take(self.replay_buffer, self.global_steps))
        known = self.actor_rollout_wg._dispatch_info
        if "actor" not in known:
            known["actor"] = self.actor_rollout_wg._query_dispatch_info("actor")
        ranks = max(known["actor"]) + 1
        most = self.config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu or 1
        rows = padded(len(batch), ranks * updates_of_a_batch(self.config), most)
        batch = upsample_batch_to_divisible_size(batch, rows, self.tokenizer.eos_token_id)
        lengths = [tag["seq_len"] for tag in batch.tags]
        shares = groups_by_rank([RowKey.parse(key).uid for key in batch.keys], lengths, ranks)
        batch.reorder([row for share in shares for row in share])
        metrics.update(log_seqlen_unbalance(lengths, shares, prefix="global_seqlen"))
        return batch

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """As upstream, where the update does not bring them itself (`vision_rl.actor.on_policy`); then the sight gauge."""
        self.update_watches = one_update(self.config)
        if not self.update_watches:
            batch = self._old_log_probs(batch, metrics)
        if self.local_trigger_step == 0:
            temperature = self.config.actor_rollout_ref.rollout.temperature
            metrics.update(self.sight.look(batch, self.actor_rollout_wg, temperature, self.global_steps))
        return batch

    def _old_log_probs(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        actor = self.config.actor_rollout_ref.actor
        batch.extra_info["calculate_sum_pi_squared"] = bool(actor.get("calculate_sum_pi_squared", False))
        batch = super()._compute_old_log_prob(batch, metrics)
        data = self._padded(batch, ["old_log_probs", "rollout_log_probs", "response_mask"])
        fresh = np.array([tag["min_global_steps"] >= self.rollouts.version for tag in batch.tags])
        metrics.update(mismatch_metrics(data, fresh))
        check_mismatch(metrics, self.run.app.integrity, self.global_steps, self.records.own_sampling())
        return batch

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        batch = super()._compute_ref_log_prob(batch, metrics)
        if self.update_watches:
            return batch
        metrics.update(reference_metrics(self._padded(batch, ["old_log_probs", "ref_log_prob", "response_mask"])))
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        batch.extra_info["updates"] = updates_of_a_batch(self.config)
        batch = super()._update_actor(batch, metrics)
        if self.update_watches:
            for name in ("mismatch/logprob_max", "mismatch/logprob_mean", "train/kl"):
                if f"actor/{name}" in metrics:
                    metrics[name] = metrics.pop(f"actor/{name}")
            metrics["actor/entropy"] = metrics["actor/entropy_loss"]
            check_mismatch(metrics, self.run.app.integrity, self.global_steps, self.records.own_sampling())
        return batch

    def _padded(self, batch: KVBatchMeta, fields: list[str]) -> DataProto:
        """Fields of a batch as tensors of (rows, longest)."""
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        return DataProto(batch=data.to_padded_tensor())

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """As upstream, but by every estimator a rollout of several turns counts once in its group, not GRPO's alone, and
        a group whose rewards are all equal has advantages of exactly zero."""
        algorithm = self.config.algorithm
        fields = ["uid", "response_mask", "rm_scores", "rollout_log_probs", "old_log_probs", "sum_pi_squared"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        nested_mask = data["response_mask"]
        if "sum_pi_squared" in data:
            data["sum_pi_squared"] = response_from_nested(data.pop("sum_pi_squared"), nested_mask)
        uids = [str(uid) for uid in data.pop("uid").tolist()]
        rows = DataProto(batch=data.to_padded_tensor())
        rows.batch["token_level_scores"] = rows.batch["token_level_rewards"] = rows.batch["rm_scores"]
        rows.non_tensor_batch["uid"] = np.array(uids, dtype=object)
        rows.non_tensor_batch["rollout_id"] = np.array(
            [RowKey.parse(key).rollout_key for key in batch.keys], dtype=object
        )
        written = ["advantages", "returns"]
        correction = algorithm.get("rollout_correction", None)
        if correction is not None and not correction.get("bypass_mode", False) and not self.update_watches:
            rows, corrected = compute_rollout_correction_and_add_to_batch(rows, correction)
            metrics.update(corrected)
            written += ["response_mask", *(["rollout_is_weights"] if "rollout_is_weights" in rows.batch else [])]
        components = self.records.components(batch) if algorithm.adv_estimator == "gdpo" else {}
        advantages = rollout_advantages(rows, algorithm, components)
        rows.batch["advantages"] = rows.batch["returns"] = advantages
        metrics.update(group_metrics(rows))
        if algorithm.adv_estimator not in TOKEN_LEVEL:
            self.records.note_advantages(batch, advantages, rows.batch["response_mask"])
        output = {name: response_to_nested(rows.batch[name], nested_mask) for name in written}
        return tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(output, batch_size=len(batch))
        )

    def on_step_end(self) -> None:
        with self._weights_arrive():
            super().on_step_end()

    @contextmanager
    def _weights_arrive(self) -> Iterator[None]:
        yield
        rollouts = getattr(self, "rollouts", None)
        if rollouts is not None:
            rollouts.weights_changed()

    def _validate(self) -> dict[str, float]:
        """Greedy rollouts of the fixed validation rows."""
        started = time.monotonic()
        with self._saved_if_the_server_dies(done=True):
            finished = self.rollouts.validate(self.tasks["val"], self.global_steps)
            gap = self.sight.reward_gap(self.rollouts, self.tasks["val"], finished, self.global_steps)
        records = [{**one.record(self.global_steps, "val"), "prompt": self.rollouts.prompt_of(one)} for one in finished]
        self.log.rollouts(records)
        log_rollout_tables(self.tracking.logger, records, self.global_steps, self.run.run_dir)
        metrics = {**rollout_metrics(finished, "val"), **per_source(records, "val"), **gap}
        metrics["timing_s/validate"] = time.monotonic() - started
        if self.global_steps == 0:
            self._record(metrics)
        return metrics

    def _compute_metrics(self, batch: KVBatchMeta, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """The last hook of a step: what is decided between the steps is decided here."""
        super()._compute_metrics(batch, metrics, *args, **kwargs)
        metrics.update(clip_ratios(batch, sample_limits(self.config)))
        metrics.update(self.gpu.read())
        if self.supervisor.stop_reason() and VALIDATED not in metrics and self.config.trainer.test_freq > 0:
            metrics.update(self._validate())
        self._record(metrics)
        self.supervisor.watch(self.global_steps, metrics, self._restore)
        if self.supervisor.stop_reason():
            if self.config.trainer.save_freq > 0:
                self._save_checkpoint()
            self.total_training_steps = self.global_steps

    def _record(self, metrics: dict[str, Any]) -> None:
        values = {name: float(value) for name, value in metrics.items() if not isinstance(value, dict)}
        self.log.metrics(self.global_steps, values)
        if VALIDATED in values:
            self.supervisor.judge(self.global_steps, values, self._save_checkpoint)
        try:
            self.tracking.log(data=values, step=self.global_steps)
        except OSError as error:  # a full disk; our own files wait in memory, and the next checkpoint tells
            self.log.event("warning", text=f"trainer.logger did not take step {self.global_steps}: {error.strerror}")


def task_loader(tasks: list[str], data: Any, batch_size: int) -> StatefulDataLoader:
    """Batches of tasks in verl's order (`data.shuffle`, `data.seed`), which the loader's state continues in any epoch."""
    rows = [{"raw_prompt": text} for text in tasks]
    sampler = create_rl_sampler(data, rows)
    return StatefulDataLoader(rows, batch_size, drop_last=True, collate_fn=collate_fn, sampler=sampler)
