"""A step of one update that brings its own `old_log_probs`: the same weights as by verl's way, and the same limit before them."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.losses import ppo_loss

from tests.actor import actor, log_probs, weights
from tests.test_rows import builder, make_sample, rows_of  # noqa: F401  (fixtures)
from tests.trainers import new_trainer
from vision_rl.actor.on_policy import OnPolicy
from vision_rl.config.resolve import resolve
from vision_rl.errors import UserError
from vision_rl.settings import AppSettings, Integrity
from vision_rl.tiny import checkpoint_dir
from vision_rl.training.rows import RowBuilder
from vision_rl.training.step_metrics import one_update
from vision_rl.training.trainer import VisionTrainer

ADVANTAGES = [1.0, -0.5, 0.25]
_ACTOR = "actor_rollout_ref.actor"


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def batch_of(rows: list[dict[str, Any]], **computed: torch.Tensor) -> Any:
    """What an update gets; computed: (rows, longest response), cut to each response."""
    lengths = [len(row["responses"]) for row in rows]
    data = list_of_dict_to_tensordict([dict(row) for row in rows])
    for name in list(data.keys()):
        if isinstance(data[name], torch.Tensor) and not data[name].is_nested:
            data[name] = nested(list(data[name]))
    data["advantages"] = nested([torch.full((n,), a) for n, a in zip(lengths, ADVANTAGES, strict=True)])
    for name, values in computed.items():
        data[name] = nested([row[:n] for row, n in zip(values, lengths, strict=True)])
    tu.assign_non_tensor(
        data,
        mini_batch_size=len(rows),
        calculate_entropy="old_log_probs" in computed,
        temperature=1.0,
        global_token_num=None,
        global_batch_size=len(rows),
    )
    return data


def updated(
    rows: list[dict[str, Any]],
    pixels: Any,
    limits: Integrity | None,
    entropy_coeff: float = 0.0,
    **computed: torch.Tensor,
) -> Any:
    """(metrics, weights before, weights after) of one update of the tiny model; limits: None trains by verl's way."""
    worker = actor("actor", None, f"{_ACTOR}.ppo_micro_batch_size_per_gpu=2", f"{_ACTOR}.optim.lr=0.01")
    overrides = [f"{_ACTOR}.entropy_coeff={entropy_coeff}"]
    config: Any = OmegaConf.create(resolve("cpu", overrides, task="vqa", model=str(checkpoint_dir())).verl)
    worker.set_loss_fn(partial(ppo_loss, config=omega_conf_to_dataclass(config.actor_rollout_ref.actor)))
    worker.engine.pixels = pixels
    worker.engine.on_policy = OnPolicy(limits or Integrity(), entropy_coeff)
    before = weights(worker)
    output = worker.train_mini_batch(batch_of(rows, **computed))
    output = output.get() if hasattr(output, "get") and not hasattr(output, "keys") else output
    return tu.get(output, "metrics"), before, weights(worker)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The Euclidean one between two sets of weights."""
    return math.sqrt(sum(float((one[name] - other[name]).double().square().sum()) for name in one))


@pytest.mark.slow
@pytest.mark.parametrize("entropy_coeff", [0.0, 0.5])
def test_weights_and_figures_are_those_of_verls_way(
    builder: RowBuilder,  # noqa: F811
    make_sample: Any,  # noqa: F811
    vqa_rows: Any,
    entropy_coeff: float,
) -> None:
    """In micro-batches of one row, one of them without a picture, and with a reference policy."""
    paths = [row["image_paths"][0] for row in vqa_rows]
    rows = rows_of(builder, [make_sample([paths[0]], "red"), make_sample(paths[1:3], "blue"), make_sample([], "2")])
    old = log_probs(actor(), rows, builder.pixels)
    reference = old - 0.5
    for row, known in zip(rows, old, strict=True):
        row["rollout_log_probs"] = known[: len(row["responses"])] + 0.05
    theirs, before, expected = updated(
        rows, builder.pixels, None, entropy_coeff, old_log_probs=old, ref_log_prob=reference
    )
    ours, _, found = updated(
        rows, builder.pixels, Integrity(logprob_mismatch_max=0.1), entropy_coeff, ref_log_prob=reference
    )
    assert share_alike(before, expected) < 0.5 and share_alike(found, expected) > 0.999
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)

    assert max(ours["mismatch/logprob_max"]) == pytest.approx(0.05, abs=1e-5)
    assert max(ours["mismatch/logprob_mean"]) == pytest.approx(0.05, abs=1e-5)
    assert max(ours["train/kl"]) == pytest.approx(math.exp(-0.5) - 1 + 0.5, abs=1e-4)
    for name in ("actor/entropy_loss", "actor/pg_loss"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-5), name


def share_alike(found: Any, expected: Any) -> float:
    """The share of all weights that are equal to rounding.

    Not all can be: Adam's first step has the size of the learning rate whatever the gradient's. Where that is nothing but
    rounding (a key's bias moves no attention; a few weights of the tower), the processor's kernels decide on the step.
    """
    alike = [torch.isclose(found[name], weight, atol=1e-6, rtol=1e-5).flatten() for name, weight in expected.items()]
    return float(torch.cat(alike).float().mean())


def test_an_update_takes_each_row_at_its_own_temperature(
    builder: RowBuilder,  # noqa: F811
    make_sample: Any,  # noqa: F811
    vqa_rows: Any,
) -> None:
    """Rollouts of three temperatures in one micro-batch are the actor's own, and the same update as by verl's way."""
    paths = [row["image_paths"][0] for row in vqa_rows]
    asked = zip(paths, ("red", "blue", "2"), (None, 0.3, 1.7), strict=False)
    rows = rows_of(builder, [make_sample([path], reply, temperature=one) for path, reply, one in asked])
    old = log_probs(actor(), rows, builder.pixels)
    for row, known in zip(rows, old, strict=True):
        row["rollout_log_probs"] = known[: len(row["responses"])]
    _, before, expected = updated(rows, builder.pixels, None, old_log_probs=old)
    ours, _, found = updated(rows, builder.pixels, Integrity(logprob_mismatch_max=1e-4))
    assert max(ours["mismatch/logprob_max"]) < 1e-5
    # Adam's first step is the gradient's sign: where a gradient is as small as its rounding, the CPU decides the direction.
    assert distance(expected, before) > 0 and distance(found, expected) <= 0.005 * distance(expected, before)


@pytest.mark.slow
def test_nothing_is_learnt_from_rollouts_that_are_too_far_off(
    builder: RowBuilder,  # noqa: F811
    make_sample: Any,  # noqa: F811
    vqa_rows: Any,
) -> None:
    """The limit holds before the optimizer's step, as it does by verl's way; one token of one row is enough."""
    paths = [row["image_paths"][0] for row in vqa_rows]
    rows = rows_of(builder, [make_sample([path], "red") for path in paths[:3]])
    old = log_probs(actor(), rows, builder.pixels)
    for row, known in zip(rows, old, strict=True):
        row["rollout_log_probs"] = known[: len(row["responses"])].clone()
    rows[1]["rollout_log_probs"][0] += 0.2
    metrics, before, after = updated(rows, builder.pixels, Integrity(logprob_mismatch_max=0.1))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert max(metrics["mismatch/logprob_max"]) == pytest.approx(0.2, abs=1e-4) and metrics["grad_norm"] == [0.0]
    _, before, after = updated(rows, builder.pixels, Integrity(logprob_mismatch_max=0.3))
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_old_log_probs_that_are_given_are_those_of_the_ratio(
    builder: RowBuilder,  # noqa: F811
    make_sample: Any,  # noqa: F811
    vqa_rows: Any,
) -> None:
    """A step of several mini-batches has moved away from them: there the update must not bring its own."""
    rows = rows_of(builder, [make_sample([row["image_paths"][0]], "red") for row in vqa_rows[:3]])
    old = log_probs(actor(), rows, builder.pixels)
    for row, known in zip(rows, old, strict=True):
        row["rollout_log_probs"] = known[: len(row["responses"])]
    metrics, _, _ = updated(rows, builder.pixels, Integrity(), old_log_probs=old + 0.1)
    assert sum(metrics["actor/ppo_kl"]) / len(metrics["actor/ppo_kl"]) == pytest.approx(0.1, abs=1e-4)
    assert not any(name.startswith("mismatch/") for name in metrics)


def noted(on_policy: OnPolicy, differences: list[float], mask: list[int], reference: float = 0.0) -> None:
    """One row of a micro-batch: |actor - rollout| by token, and the tokens that are the model's own."""
    said = torch.full((1, len(mask)), -1.0)
    data = TensorDict(
        {
            "response_mask": nested([torch.tensor(mask)]),
            "rollout_log_probs": nested([said[0] + torch.tensor(differences)]),
            "ref_log_prob": nested([said[0] - reference]),
        },
        batch_size=1,
    )
    on_policy._note(said, data)


def test_the_figures_are_of_the_models_own_tokens_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool's tokens have no log-probability; every rank has to decide alike, whoever has seen what is too far off."""
    limits = Integrity(logprob_mismatch_max=0.5)
    here, there = OnPolicy(limits, 0.0), OnPolicy(limits, 0.0)
    noted(here, [0.1, 9.0, -0.3], [1, 0, 1], reference=0.5)
    noted(here, [0.2], [1], reference=0.5)
    noted(here, [7.0], [0])
    noted(there, [0.6, 0.0], [1, 1], reference=0.5)
    others = [there._largest, there._sums]
    meets = {torch.distributed.ReduceOp.MAX: torch.maximum, torch.distributed.ReduceOp.SUM: torch.add}

    def all_reduce(tensor: torch.Tensor, op: Any, group: Any) -> None:
        assert group == "the ranks"
        tensor.copy_(meets[op](tensor, others.pop(0)))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    assert not here.may_update("the ranks", with_reference=True)
    assert here.metrics == pytest.approx(
        {
            "mismatch/logprob_max": 0.6,
            "mismatch/logprob_mean": (0.1 + 0.3 + 0.2 + 0.6) / 5,
            "train/kl": math.exp(-0.5) - 1 + 0.5,
        }
    )
    others = [torch.zeros(()), torch.zeros(3)]
    assert here.may_update("the ranks", with_reference=False) and here.metrics == {}, "the next update begins anew"


@pytest.mark.slow
@pytest.mark.parametrize(("updates", "rows_of_one"), [({}, 3), ({"updates": 1}, 3), ({"updates": 3}, 1)])
def test_the_rows_of_a_batch_are_divided_by_its_updates(
    updates: dict[str, int],
    rows_of_one: int,
    builder: RowBuilder,  # noqa: F811
    make_sample: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many rows the turns of its rollouts are; verl divides by prompts x samples."""
    sizes = []
    monkeypatch.setattr(
        TrainingWorker,
        "train_mini_batch",
        lambda self, data: sizes.append((data["mini_batch_size"], data["global_batch_size"])),
    )
    data = batch_of(rows_of(builder, [make_sample([], word) for word in ("red", "blue", "2")]))
    tu.assign_non_tensor(data, mini_batch_size=128, **updates)
    actor().train_mini_batch(data)
    assert sizes == [(rows_of_one, rows_of_one)]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("", True),
        (f"{_ACTOR}.ppo_mini_batch_size=8", False),
        (f"{_ACTOR}.ppo_epochs=2", False),
        (f"{_ACTOR}.use_kl_loss=true", True),
        ("algorithm.rollout_correction.rollout_is=token", False),
        ("algorithm.rollout_correction.rollout_rs=token_k1", False),
        ("algorithm.adv_estimator=optimal_token_baseline", False),
        ("algorithm.adv_estimator=rloo", True),
        ("trainer.v1.trainer_mode=colocate_async", False),
    ],
)
def test_which_steps_are_one_update(override: str, expected: bool) -> None:
    extra = ["algorithm.rollout_correction.rollout_rs_threshold=0.5_2.0"] if "rollout_rs" in override else []
    extra += ["algorithm.rollout_correction.rollout_is=token"] if "colocate" in override else []
    overrides = [*([override] if override else []), *extra]
    config = OmegaConf.create(resolve("cpu", overrides, task="vqa", model=str(checkpoint_dir())).verl)
    assert one_update(config) is expected
    config.actor_rollout_ref.actor.strategy = "megatron"
    assert not one_update(config), "its engine knows nothing of it"


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VisionTrainer:
    made: VisionTrainer = new_trainer(tmp_path, AppSettings(integrity=Integrity(logprob_mismatch_max=0.1)))
    made.global_steps, made.actor_rollout_wg = 4, None
    made.sight = SimpleNamespace(look=lambda *_: {})  # type: ignore[assignment]
    made.records = SimpleNamespace(own_sampling=Counter)  # type: ignore[assignment]
    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", lambda *_: pytest.fail("a pass of its own"))
    return made


def test_what_the_update_tells_is_logged_and_watched(trainer: VisionTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"actor/mismatch/logprob_max": 0.05, "actor/mismatch/logprob_mean": 0.01, "actor/entropy_loss": 2.0}
    monkeypatch.setattr(PPOTrainer, "_update_actor", lambda self, batch, metrics: metrics.update(said) or batch)
    batch = KVBatchMeta(partition_id="train", keys=["a_0_0"], tags=[{}])
    metrics: dict[str, Any] = {}
    trainer._update_actor(trainer._compute_old_log_prob(batch, metrics), metrics)
    assert metrics == {
        **{"mismatch/logprob_max": 0.05, "mismatch/logprob_mean": 0.01},
        **{"actor/entropy_loss": 2.0, "actor/entropy": 2.0, "mismatch/share_of_limit": 0.5},
    }
    said["actor/mismatch/logprob_max"] = 0.25
    with pytest.raises(UserError, match=r"step 4.*off from the rollout's by 0\.25"):
        trainer._update_actor(batch, metrics)


def test_a_step_with_a_look_at_black_pictures_has_no_pass_of_its_own(trainer: VisionTrainer) -> None:
    """The gauge computes the few rows that it looks at itself (`VisionTrainingWorker.sight`)."""
    asked: list[int] = []
    trainer.sight = SimpleNamespace(look=lambda batch, workers, temperature, step: asked.append(step) or {})  # type: ignore
    trainer.global_steps = 5
    trainer._compute_old_log_prob(KVBatchMeta(partition_id="train", keys=["a"], tags=[{}]), {})
    assert asked == [5] and trainer.update_watches
