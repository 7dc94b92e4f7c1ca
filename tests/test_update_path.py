"""Between a finished rollout and the update, part by part on hand-built values: what each figure and each field must be.

tests/test_rollout_manager.py has the way as a whole. Each test here fails on a change that once left all tests green.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from omegaconf import OmegaConf
from PIL import Image
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from tests.test_engine_small import ALGORITHM, TASK, TURN, batch_of
from tests.trainers import ASYNCHRONOUS, new_rank, new_trainer
from vision_rl.actor import rank as worker_module
from vision_rl.actor.mismatch import reference_metrics
from vision_rl.actor.rank import fit_micro_batches
from vision_rl.errors import UserError
from vision_rl.models import pixels as pixels_module
from vision_rl.models.pixels import Pixels, join
from vision_rl.rollout.trace import Turn
from vision_rl.run.best import judged
from vision_rl.run.failures import RolloutFailure
from vision_rl.run.log import METRICS, ROLLOUTS, RunLog, read_jsonl
from vision_rl.settings import AppSettings, Integrity
from vision_rl.training import checkpointing, modes
from vision_rl.training import trainer as trainer_module
from vision_rl.training.advantages import group_metrics, rollout_advantages
from vision_rl.training.health import Health, ModelDied
from vision_rl.training.rollout_manager import Group
from vision_rl.training.rollouts import FinishedRollout, rollout_metrics
from vision_rl.training.steps import StepRecords
from vision_rl.training.trainer import VisionTrainer, task_loader

SECOND = Turn([1, 2, 3, 4, 5, 6], [7, 8, 9], [-0.1] * 3, ["file:///a.png"], "no", "length")


# Rollouts and their records


def test_metrics_of_rollouts_of_several_turns() -> None:
    rollouts = [
        FinishedRollout("a", "g", TASK, [TURN, SECOND], {"reward": 1.0}, seconds=2.0),
        FinishedRollout("b", "g", TASK, [TURN], {"reward": 0.5}, seconds=9.0),
        FinishedRollout("c", "g", TASK, failure=RolloutFailure.TIMEOUT, seconds=90.0),
    ]
    metrics = rollout_metrics(rollouts, "train")
    assert metrics["train/reward"] == pytest.approx(0.5), "the failed one counts as 0"
    assert metrics["train/response_length"] == (5 + 2) / 2 and metrics["train/turns"] == 1.5
    assert metrics["train/seconds_max"] == 9.0
    record = rollouts[0].record(4, "train")
    assert record["finish_reasons"] == ["stop", "length"] and record["response_tokens"] == [2, 3]
    assert record["replies"] == ["yes", "no"] and record["prompt_tokens"] == [3, 6]


class Rollouts:
    """What `StepRecords` asks the manager."""

    def __init__(self, *groups: Group) -> None:
        self.groups = {group.uid: group for group in groups}

    def take(self, uid: str) -> Group:
        return self.groups.pop(uid)

    def prompt_of(self, _: FinishedRollout) -> str:
        return "a prompt"


def group(uid: str, rewards: list[float], *, mode: str = "train", seconds: float = 1.0, **more: Any) -> Group:
    names = [f"{uid}-{index}" for index in range(len(rewards))]
    finished = {
        name: FinishedRollout(name, uid, TASK, [TURN], {"reward": reward, "task": reward}, seconds=seconds)
        for name, reward in zip(names, rewards, strict=True)
    }
    rows = {f"{uid}_{index}_0": name for index, name in enumerate(names)}
    return Group(uid, TASK, mode, 3, 0, finished=finished, rows=rows, samples=len(rewards), **more)


def test_records_know_the_advantage_and_the_components_of_each_rollout(tmp_path: Path) -> None:
    rollouts = Rollouts(group("g", [1.0, 0.0], truncated=1), group("h", [0.5], seconds=9.0))
    records = StepRecords(RunLog(tmp_path), rollouts, Integrity())  # type: ignore[arg-type]
    metrics = records.take(SimpleNamespace(selected={"g", "h"}, thrown_away={}), 4)
    assert metrics["train/responses_truncated"] == 1
    batch = KVBatchMeta(partition_id="train", keys=["g_0_0", "g_1_0", "h_0_0", "pad_0_0"], tags=[{}] * 4)
    assert records.components(batch) == {"task": [1.0, 0.0, 0.5, 0.0]}, "rows that pad the batch have zeros"
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 4)
    records.note_advantages(batch, torch.tensor([[0.7], [-0.7], [0.0], [0.0]]) * mask, mask)
    records.write()
    lines = {one["rollout_id"]: one for one in read_jsonl(tmp_path / ROLLOUTS)[0]}
    advantages = {name: line["advantage"] for name, line in lines.items()}
    assert advantages == pytest.approx({"g-0": 0.7, "g-1": -0.7, "h-0": 0.0})
    assert {line["step"] for line in lines.values()} == {4} and lines["g-0"]["prompt"] == "a prompt"


def test_what_is_left_at_the_end_is_reported_with_its_own_step_and_mode(tmp_path: Path) -> None:
    rollouts = Rollouts(group("g", [1.0, 0.0]), group("v", [1.0], mode="val"))
    records = StepRecords(RunLog(tmp_path), rollouts, Integrity())  # type: ignore[arg-type]
    records.step = 9
    records.write_rest()
    lines = read_jsonl(tmp_path / ROLLOUTS)[0]
    assert {(one["mode"], one["step"], one["dropped"]) for one in lines} == {
        ("train", 3, "run_ended"),
        ("val", 3, "run_ended"),
    }


# Advantages and distances


def test_the_distance_to_the_reference_is_of_the_models_own_tokens() -> None:
    """k3 of verl: exp(r) - r - 1 with r = reference - actor; what is padding or given must not count."""
    batch = batch_of([1.0], ["g"], ["a"])
    batch.batch["ref_log_prob"] = torch.tensor([[0.5, 0.0, 9.0]])
    expected = (float(np.exp(0.5)) - 0.5 - 1) / 2
    assert reference_metrics(batch) == pytest.approx({"train/kl": expected})
    assert reference_metrics(batch_of([1.0], ["g"], ["a"])) == {}


def test_rows_that_pad_a_batch_are_no_group() -> None:
    batch = batch_of([1, 0, 0], ["g", "g", "pad"], list("abc"))
    batch.batch["response_mask"][2] = 0
    assert group_metrics(batch) == {"train/groups_equal": 0.0}


def test_advantages_are_masked_and_dr_grpos_are_not_divided() -> None:
    batch = batch_of([1.0, 0.0, 0.0, 0.0], ["g"] * 4, list("abcd"))
    dr_grpo = OmegaConf.create({"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": False})
    advantages = rollout_advantages(batch, dr_grpo)
    assert advantages[0].tolist() == pytest.approx([0.75, 0.75, 0.0]) and advantages[1, 0].item() == pytest.approx(
        -0.25
    )
    assert rollout_advantages(batch, ALGORITHM)[0, 0].item() == pytest.approx(1.5, abs=1e-4)  # 0.75 / 0.5


def test_a_token_level_baseline_gives_equal_groups_nothing() -> None:
    batch = batch_of([0.9, 0.9, 1.0, 0.0], ["g", "g", "h", "h"], list("abcd"))
    batch.batch["sum_pi_squared"] = torch.full((4, 3), 0.5)
    batch.batch["old_log_probs"] = torch.tensor([[-1.0, -2.0, 0.0], [-0.1, -0.2, 0.0]] * 2)
    algorithm = OmegaConf.create({"adv_estimator": "optimal_token_baseline"})
    advantages = rollout_advantages(batch, algorithm)
    assert (advantages[:2] == 0).all() and (advantages[2:] != 0).any()


def test_gdpo_takes_each_rollouts_own_components() -> None:
    """Rollout a has two rows: the values of the others must not move up by one."""
    batch = batch_of([1.0, 1.0, 0.0, 0.5], ["g"] * 4, ["a", "a", "b", "c"])
    algorithm = OmegaConf.create({"adv_estimator": "gdpo", "gdpo_reward_keys": ["x"], "gdpo_reward_weights": None})
    advantages = rollout_advantages(batch, algorithm, {"x": [1.0, 1.0, 0.0, 0.5]})
    assert advantages[0, 0] == advantages[1, 0] > advantages[3, 0] > advantages[2, 0]


def test_gdpo_compares_components_not_their_sum() -> None:
    """arXiv 2601.05242: a group whose sums are equal learns, if the components are not; one that is equal in all does not.

    A component of 0.9 for all must not add a thing: its mean in float32 is not 0.9.
    """
    uids = ["g"] * 8 + ["h"] * 8
    batch = batch_of([1.0] * 8 + [1.8] * 8, uids, [str(number) for number in range(16)])
    algorithm = OmegaConf.create({"adv_estimator": "gdpo", "gdpo_reward_keys": ["x", "y"], "gdpo_reward_weights": None})
    x, same = [1.0, 0.0] * 4, [0.9] * 8
    advantages = rollout_advantages(batch, algorithm, {"x": x + same, "y": same + same})[:, 0]
    assert (advantages[8:] == 0).all()
    assert advantages[0] > 0 > advantages[1] and len(set(advantages[:8].tolist())) == 2


# The trainer's hooks


class Queue:
    """verl's queue: fields by key, rows of any length."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.put: dict[str, Any] = {}
        self.saved: list[str] = []

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> Any:
        return list_of_dict_to_tensordict([{k: v for k, v in row.items() if k in select_fields} for row in self.rows])

    def kv_batch_put(self, keys: list[str], partition_id: str, fields: Any) -> str:
        self.put = {name: [row.tolist() for row in fields[name].unbind()] for name in list(fields.keys())}
        return "written"

    def save_checkpoint(self, folder: str, metadata: Any) -> None:
        self.saved.append(folder)

    def kv_list(self, _: str) -> None:
        return None

    def load_checkpoint(self, folder: str) -> None:
        self.saved.remove(folder)


def rows_of(rewards: list[float], lengths: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "uid": "g",
            "response_mask": torch.ones(length, dtype=torch.long),
            "rm_scores": torch.tensor([0.0] * (length - 1) + [reward]),
            "rollout_log_probs": torch.full((length,), -1.0),
            "old_log_probs": torch.full((length,), -1.25),
        }
        for reward, length in zip(rewards, lengths, strict=True)
    ]


def at_step_4(run_dir: Path, *overrides: str, train: Sequence[str] = ()) -> VisionTrainer:
    app = AppSettings(integrity=Integrity(logprob_mismatch_max=0.1))
    made: VisionTrainer = new_trainer(run_dir, app, *overrides, train=train)
    made.global_steps, made.rollouts = 4, SimpleNamespace(version=2)  # type: ignore[assignment]
    return made


@pytest.fixture
def trainer(tmp_path: Path) -> VisionTrainer:
    return at_step_4(tmp_path)


def test_advantages_go_back_to_the_queue_row_by_row(trainer: VisionTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two turns of one rollout and one of another: a rollout counts once, and each row gets back its own length."""
    queue = Queue(rows_of([1.0, 1.0, 0.0], [2, 3, 1]))
    monkeypatch.setattr(trainer_module, "tq", queue)
    correction = {"rollout_is": "token", "rollout_is_threshold": 1.1, "rollout_rs": None, "rollout_rs_threshold": None}
    algorithm = trainer.config.algorithm
    algorithm.norm_adv_by_std_in_grpo, algorithm.rollout_correction = False, correction
    noted: list[Any] = []
    trainer.records = SimpleNamespace(note_advantages=lambda *given: noted.append(given))  # type: ignore[assignment]
    batch = KVBatchMeta(partition_id="train", keys=["g_0_0", "g_0_1", "g_1_0"], tags=[{}] * 3)
    metrics: dict[str, Any] = {}
    assert trainer._compute_advantage(batch, metrics) == "written"
    assert queue.put["advantages"] == queue.put["returns"] == [[0.5, 0.5], [0.5, 0.5, 0.5], [-0.5]]
    assert queue.put["response_mask"] == [[1, 1], [1, 1, 1], [1]], "a correction may reject: its mask is written"
    assert [len(row) for row in queue.put["rollout_is_weights"]] == [2, 3, 1]
    assert metrics["train/groups_equal"] == 0.0 and len(noted) == 1
    del algorithm["rollout_correction"]
    trainer._compute_advantage(batch, metrics)
    assert set(queue.put) == {"advantages", "returns"}


@pytest.mark.parametrize(("version", "stops"), [(2, True), (1, False)])
def test_only_what_the_weights_of_now_have_sampled_can_end_a_run(
    version: int, stops: bool, trainer: VisionTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture's rows are 0.25 nats apart, the limit is 0.1."""
    monkeypatch.setattr(trainer_module, "tq", Queue(rows_of([1.0], [2])))
    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", lambda self, batch, metrics: batch)
    monkeypatch.setattr(trainer_module, "one_update", lambda config: False)
    trainer.config.actor_rollout_ref.actor.calculate_sum_pi_squared = True
    trainer.local_trigger_step = 1  # the sight gauge looks at the first of a sync's updates only
    trainer.records = SimpleNamespace(own_sampling=lambda: {})  # type: ignore[assignment]
    batch = KVBatchMeta(partition_id="train", keys=["g_0_0"], tags=[{"min_global_steps": version}])
    metrics: dict[str, Any] = {}
    if stops:
        with pytest.raises(UserError, match=r"step 4.*off from the rollout's by 0\.25"):
            trainer._compute_old_log_prob(batch, metrics)
    else:
        trainer._compute_old_log_prob(batch, metrics)
        assert metrics["mismatch/stale_logprob_max"] == pytest.approx(0.25)
    assert batch.extra_info["calculate_sum_pi_squared"] is True


def test_records_are_written_whatever_ends_a_step_or_a_run(
    trainer: VisionTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_args: Any, **_kwargs: Any) -> None:
        raise UserError("too much was dropped")

    written: list[str] = []
    trainer.records = SimpleNamespace(write=lambda: written.append("step"), write_rest=lambda: written.append("rest"))  # type: ignore
    monkeypatch.setattr(PPOTrainer, "_step_once", fails)
    with pytest.raises(UserError):
        trainer._step_once({}, {}, 8)
    assert written == ["step"]
    monkeypatch.setattr(PPOTrainer, "fit", fails)
    with pytest.raises(UserError):
        trainer.fit()
    assert written == ["step", "rest"]


def test_new_weights_are_reported_after_they_are_there(trainer: VisionTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    trainer.rollouts = SimpleNamespace(weights_changed=lambda: order.append("version counted"))  # type: ignore[assignment]
    monkeypatch.setattr(modes.PPOTrainerSync, "on_step_end", lambda self: order.append("sent"))
    trainer.on_step_end()
    assert order == ["sent", "version counted"]


@pytest.mark.parametrize(("overrides", "batch"), [((), 16), (("app.filter_groups.enable=true",), 1), (ASYNCHRONOUS, 1)])
def test_the_loader_counts_the_steps(overrides: Sequence[str], batch: int, tmp_path: Path) -> None:
    """Forty rows in batches of sixteen are two steps an epoch; dynamic sampling and the asynchronous modes draw one by one."""
    steps = ("trainer.total_training_steps=null", "trainer.total_epochs=3")
    trainer = at_step_4(tmp_path, *steps, *overrides, train=[str(number) for number in range(40)])
    trainer._init_dataloader()
    assert (trainer.steps_per_epoch, trainer.total_training_steps) == (2, 6)
    assert trainer.config.actor_rollout_ref.actor.optim.total_training_steps == 6
    assert trainer.config.trainer.total_epochs == 4, "verl's own loop must not end the run before its steps are done"
    assert len(next(iter(trainer.train_dataloader))["raw_prompt"]) == batch


@pytest.mark.parametrize("mode", [(), ASYNCHRONOUS])
def test_a_checkpoint_brings_everything_back(
    mode: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step, order of the data, random states of three libraries, weights; the queue in the asynchronous modes."""
    queue = Queue([])
    monkeypatch.setattr(checkpointing, "tq", queue)
    trainer = at_step_4(tmp_path, *mode, "trainer.save_freq=5")
    loaded: list[str] = []

    def save(folder: str, _remote: None, _step: int) -> None:
        Path(folder).mkdir(parents=True)
        if trainer.trainer_mode != "sync":
            (Path(folder).parent / "transfer_queue").mkdir()

    trainer.actor_rollout_wg = SimpleNamespace(
        save_checkpoint=save, load_checkpoint=lambda local_path: loaded.append(local_path)
    )
    data = OmegaConf.create({"shuffle": True, "seed": 1, "sampler": None})
    trainer.train_dataloader = task_loader([str(number) for number in range(8)], data, 2)
    stream = iter(trainer.train_dataloader)
    next(stream)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    trainer._save_checkpoint()
    assert bool(queue.saved) == (trainer.trainer_mode != "sync")
    queue.saved = [str(trainer.checkpoints.path(4) / "transfer_queue")] if queue.saved else []
    expected = (next(stream)["raw_prompt"], random.random(), np.random.random(), torch.rand(1).item())
    trainer.train_dataloader = task_loader([str(number) for number in range(8)], data, 2)
    trainer.queue_is_up = lambda: None
    trainer.config.trainer.resume_mode = "auto"
    trainer.log.metrics(4, {"train/reward": 0.5})
    trainer.log.metrics(5, {"train/reward": 0.5})
    trainer._load_checkpoint()
    again = (random.random(), np.random.random(), torch.rand(1).item())
    assert again == expected[1:]
    assert list(next(iter(trainer.train_dataloader))["raw_prompt"]) == list(expected[0])
    assert trainer.global_steps == 4 and loaded == [str(trainer.checkpoints.path(4) / "actor")] and not queue.saved
    assert [line["step"] for line in read_jsonl(trainer.run.run_dir / METRICS)[0]] == [4], "step 5 is done again"


# Ranks


@pytest.mark.parametrize(("rows", "most", "fitting"), [(127, 64, 1), (12, 8, 6), (8, 64, 8), (9, 4, 3)])
def test_micro_batches_divide_any_number_of_rows(rows: int, most: int, fitting: int) -> None:
    data = list_of_dict_to_tensordict([{"x": torch.ones(1)}] * rows)
    fit_micro_batches(data, most)
    assert data["micro_batch_size_per_gpu"] == fitting


def test_actor_and_reference_both_get_pictures_and_banned_tokens(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = [SimpleNamespace(engine=SimpleNamespace()) for _ in range(2)]
    loss = SimpleNamespace(keywords={"config": SimpleNamespace(entropy_coeff=0.0)})
    worker: Any = new_rank(f"actor_rollout_ref.model.path={tiny_dir}")
    worker.actor, worker.ref, worker.loss_fn = *ranks, loss
    limits = {"max_pixels": 3136}
    worker.open_pictures(str(tmp_path), limits, app=AppSettings(blank_pixels=True), banned_tokens=[7, 9], alone=False)
    for rank in ranks:
        assert rank.engine.banned_tokens.tolist() == [7, 9]
        assert (
            rank.engine.pixels.blank
            and rank.engine.pixels.limits == limits
            and rank.engine.pixels.picture_dir == tmp_path
        )


def test_a_server_that_takes_no_weights_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import zmq

    asked: list[tuple[int, int]] = []

    async def never(self: Any, **_kwargs: Any) -> None:
        raise zmq.Again()

    monkeypatch.setattr(worker_module.ActorRolloutRefWorker, "update_weights", never)
    monkeypatch.setattr(zmq.Context, "instance", lambda: SimpleNamespace(setsockopt=lambda *given: asked.append(given)))
    monkeypatch.setattr(worker_module, "WEIGHT_SECONDS", 2.0)
    worker = new_rank()
    with pytest.raises(UserError, match="did not take the new weights within 2 s"):
        asyncio.run(worker.update_weights(global_steps=1))
    assert asked == [(zmq.RCVTIMEO, 2000)]


# Pictures


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a b.png"
    Image.new("RGB", (112, 112), "red").save(path)
    return path


def test_references_are_paths_and_nothing_else(tiny_processor: Any, picture: Path, tmp_path: Path) -> None:
    pixels = Pixels(tiny_processor, tmp_path)
    assert pixels.path(picture.as_uri()) == picture, "a URL's %20 is a space"
    assert pixels.path("sha256:abc") == tmp_path / "abc"
    with pytest.raises(UserError, match="send pictures as file:// paths"):
        pixels.path("http://elsewhere/a.png")


def test_the_runs_limits_reach_the_processor(tiny_processor: Any, picture: Path, tmp_path: Path) -> None:
    refs = [picture.as_uri()]
    small = Pixels(tiny_processor, tmp_path, limits={"min_pixels": 28 * 28, "max_pixels": 56 * 56})
    assert small.placeholders(refs) == 4 and small.inputs(refs)["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert Pixels(tiny_processor, tmp_path).placeholders(refs) == 16


def test_the_pictures_used_last_are_kept(
    tiny_processor: Any, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels_module, "CACHED_PICTURES", 2)
    names = []
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (56, 56), colour).save(tmp_path / f"{colour}.png")
        names.append((tmp_path / f"{colour}.png").as_uri())
    pixels = Pixels(tiny_processor, tmp_path)
    opened: list[Any] = []
    process = pixels._process

    def counted(pictures: list[Image.Image], video: bool) -> Any:
        opened.append(pictures[0].getpixel((0, 0)))
        return process(pictures, video)

    monkeypatch.setattr(pixels, "_process", counted)
    red, green, blue = names
    for ref in (red, green, red, blue, red, green):
        pixels.inputs([ref])
    colours = {red: (255, 0, 0), green: (0, 128, 0), blue: (0, 0, 255)}
    assert opened == [colours[ref] for ref in (red, green, blue, green)], (
        "green went for blue, for red had been used since"
    )


def test_pictures_of_other_shapes_are_padded_at_their_ends() -> None:
    joined = join([torch.ones(1, 2, 3), 2 * torch.ones(1, 3, 2)])
    assert joined[0].tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert joined[1].tolist() == [[2, 2, 0], [2, 2, 0], [2, 2, 0]]


def test_pixels_are_float32_whatever_the_processor_makes(tiny_processor: Any, picture: Path, tmp_path: Path) -> None:
    class Bfloat16:
        """Llama 4's processor."""

        config, image_token_id = tiny_processor.config, tiny_processor.image_token_id
        apply_chat_template = tiny_processor.apply_chat_template

        def __call__(self, **given: Any) -> Any:
            made = tiny_processor(**given)
            made["pixel_values"] = made["pixel_values"].bfloat16()
            return made

    inputs = Pixels(Bfloat16(), tmp_path).inputs([picture.as_uri()])
    assert inputs["pixel_values"].dtype == torch.float32 and inputs["image_grid_thw"].dtype == torch.int64


# Health, best


class Actor:
    """A handle of Ray's whose process is gone, or which is busy."""

    def __init__(self, name: str) -> None:
        self.__ray_ready__ = SimpleNamespace(remote=lambda: name)


@pytest.mark.parametrize(
    ("name", "answers", "error"),
    [
        ("vllm_server_0_0", True, ModelDied),
        ("trainer_rank_0", True, ray.exceptions.RayActorError),
        ("vllm_server_0_0", False, None),
    ],
)
def test_a_dead_process_is_distinguished_from_a_busy_one(
    name: str, answers: bool, error: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(_reference: Any) -> None:
        raise ray.exceptions.RayActorError()

    monkeypatch.setattr(ray, "wait", lambda given, timeout: (given if answers else [], []))
    monkeypatch.setattr(ray, "get", get)
    health = Health({name: Actor(name)})
    if error is None:
        health._check_actors()
        return
    with pytest.raises(error):
        health._check_actors()


def test_a_gain_must_be_larger_than_min_delta_and_losses_count_downwards() -> None:
    rule = SimpleNamespace(metric="val/loss", maximize=False, min_delta=0.5)
    best = judged(None, 1, {"val/loss": 2.0}, rule)  # type: ignore[arg-type]
    assert judged(best, 2, {"val/loss": 1.5}, rule)["since"] == 1  # type: ignore[arg-type]
    assert judged(best, 2, {"val/loss": 1.25}, rule) == {"step": 2, "metric": "val/loss", "value": 1.25, "since": 0}  # type: ignore[arg-type]
