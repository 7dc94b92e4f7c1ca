"""The engine's small parts: trace packing, checkpoints, run directory, limits, advantages, summary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from vision_rl.engine.daemon import VisionDaemon
from vision_rl.engine.trainer import update_divisor

from vision_rl.engine.algorithm import last_error
from vision_rl.engine.trace import Turn, pack, turn_attributes, turns_from_spans, unpack
from vision_rl.errors import UserError
from vision_rl.run_dir import open_run_dir
from vision_rl.settings import Checkpoints as CheckpointSettings
from vision_rl.settings import Integrity
from vision_rl.telemetry import METRICS, ROLLOUTS, RunLog, read_jsonl
from vision_rl.training.advantages import group_metrics, pad_masked, rollout_advantages
from vision_rl.training.checkpoints import Checkpoints
from vision_rl.training.mismatch import check_mismatch, mismatch_metrics
from vision_rl.training.rollouts import FinishedRollout, rollout_metrics, transition_samples

TASK = {"id": "1", "question": "?", "image_paths": ["a.png"], "answers": ["yes"], "boxes": []}
TURN = Turn([1, 2, 3], [4, 5], [-0.5, -0.25], ["file:///a.png"], "yes", "stop")


class Span:
    def __init__(self, turn: Turn, sequence_id: int) -> None:
        self.name, self.attributes, self.sequence_id = "vision_rl.llm_call", turn_attributes(turn), sequence_id


@given(st.lists(st.integers(0, 2**31 - 1)))
def test_token_ids_survive_packing(ids: list[int]) -> None:
    assert unpack(pack(ids, "<i4"), "<i4") == ids


def test_a_megapixel_image_costs_few_bytes() -> None:
    turn = Turn(
        [151652] + [151655] * 1300 + [151653] + list(range(50)), list(range(30)), [-0.1] * 30, ["x"], "t", "stop"
    )
    assert len(json.dumps(turn_attributes(turn))) < 1500


def test_turns_come_back_exact_and_in_order() -> None:
    second = Turn([9], [8], [-1.0], [], "no", "length")
    spans: Any = [Span(second, 7), Span(TURN, 3)]
    assert turns_from_spans(spans) == [TURN, second]


def test_failed_rollouts_count_as_zero_and_are_not_trained_on() -> None:
    good = FinishedRollout("a", "g", TASK, [TURN], {"reward": 1.0, "accuracy": 1.0})
    bad = FinishedRollout("b", "g", TASK, failure="timeout")
    metrics = rollout_metrics([good, bad], "val")
    assert metrics["val/reward"] == 0.5
    assert metrics["val/accuracy"] == 1.0
    assert metrics["val/rollouts_failed"] == metrics["val/failed/timeout"] == 1
    assert [sample.rollout_id for sample in transition_samples([good, bad])] == ["a"]


def batch_of(rewards: list[float], groups: list[str], rollouts: list[str]) -> DataProto:
    n = len(rewards)
    scores = torch.zeros(n, 3)
    scores[:, 1] = torch.tensor(rewards)
    tensors = {
        "token_level_rewards": scores,
        "response_mask": torch.tensor([[1, 1, 0]] * n),
        "old_log_probs": torch.zeros(n, 3),
        "rollout_log_probs": torch.zeros(n, 3),
        "attention_mask": torch.ones(n, 4, dtype=torch.long),
        "advantages": torch.ones(n, 3),
    }
    return DataProto(
        batch=TensorDict(tensors, batch_size=n),  # type: ignore[arg-type]
        non_tensor_batch={"uid": np.array(groups, dtype=object), "rollout_id": np.array(rollouts, dtype=object)},
    )


ALGORITHM = OmegaConf.create({"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": True})


def test_advantages_equal_verl_for_single_turns() -> None:
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    batch = batch_of([1.0, 0.0, 0.5, 0.0], ["g", "g", "h", "h"], list("abcd"))
    ours = rollout_advantages(batch, ALGORITHM)
    theirs, _ = compute_grpo_outcome_advantage(
        batch.batch["token_level_rewards"].clone(), batch.batch["response_mask"], batch.non_tensor_batch["uid"]
    )
    torch.testing.assert_close(ours, theirs)


def test_a_rollout_of_many_turns_counts_once_in_its_group() -> None:
    """Rollout a (reward 1) has three samples; the group's mean is still (1 + 0) / 2."""
    many = rollout_advantages(batch_of([1.0, 1.0, 1.0, 0.0], ["g"] * 4, ["a", "a", "a", "b"]), ALGORITHM)
    single = rollout_advantages(batch_of([1.0, 0.0], ["g"] * 2, ["a", "b"]), ALGORITHM)
    torch.testing.assert_close(many[[0, 3]], single)
    torch.testing.assert_close(many[0], many[2])


def test_equal_groups_are_counted() -> None:
    assert group_metrics(batch_of([1, 1, 0, 1], ["g", "g", "h", "h"], list("abcd"))) == {"train/groups_equal": 0.5}


def test_mismatch_reads_only_the_models_own_tokens() -> None:
    batch = batch_of([1.0], ["g"], ["a"])
    batch.batch["old_log_probs"] = torch.tensor([[0.2, 0.0, 9.0]])
    metrics = mismatch_metrics(batch)
    assert metrics == pytest.approx({"mismatch/logprob_max": 0.2, "mismatch/logprob_mean": 0.1})


@pytest.mark.parametrize(("value", "fits"), [(0.05, True), (0.2, False), (float("nan"), False)])
def test_a_run_stops_when_actor_and_rollout_disagree(value: float, fits: bool) -> None:
    metrics = {"mismatch/logprob_max": value, "mismatch/logprob_mean": 0.0}
    limits = Integrity(logprob_mismatch_max=0.1, logprob_mismatch_mean=None)
    if fits:
        check_mismatch(metrics, limits, 3)
    else:
        with pytest.raises(UserError, match=r"step 3.*logprob_mismatch_max=0.1"):
            check_mismatch(metrics, limits, 3)


def test_padding_carries_no_loss() -> None:
    padded = pad_masked(batch_of([1.0, 0.0, 1.0], ["g"] * 3, list("abc")), 2)
    assert len(padded) == 4
    assert not padded.batch["response_mask"][3].any()
    assert not padded.batch["advantages"][3].any()
    assert padded.batch["response_mask"][:3].any()


@pytest.mark.parametrize(("samples", "padded"), [(16, 16), (13, 16), (17, 24)])
def test_megatrons_workers_can_split_what_an_update_brings(samples: int, padded: int) -> None:
    """A rollout that failed must not end the run: the iterator of verl's Megatron actor asserts whole mini-batches."""
    config = OmegaConf.create(
        {
            "actor": {"strategy": "megatron", "ppo_mini_batch_size": 4},
            "rollout": {"n": 2},
            "world": 8,
            "data_parallel": 2,
        }
    )
    batch = batch_of([1.0] * samples, ["g"] * samples, [str(i) for i in range(samples)])
    update = pad_masked(batch, update_divisor(config, config.world))
    assert len(update) == padded
    assert int(update.batch["response_mask"].any(dim=-1).sum()) == samples
    per_rank = config.actor.ppo_mini_batch_size * config.rollout.n // config.data_parallel  # megatron_workers.py:273
    for share in update.chunk(config.data_parallel):
        assert len(list(share.make_iterator(per_rank, epochs=1))) == padded // 8
    config.actor.strategy = "fsdp2"
    assert update_divisor(config, config.world) == 8


def test_checkpoints_are_whole_or_absent(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(keep_last=2))
    for step in (2, 10, 9):
        with checkpoints.writing(step) as folder:
            (folder / "data").write_text(str(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step_10", "global_step_9"]
    with pytest.raises(RuntimeError), checkpoints.writing(11):
        raise RuntimeError("killed")
    assert checkpoints.latest() == tmp_path / "global_step_10"


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointSettings())
    with checkpoints.writing(1) as folder:
        (folder / "data").write_text("1")
    with pytest.raises(UserError, match=r"disk of .* is full.*global_step_1"), checkpoints.writing(2):
        raise OSError(28, "No space left on device")
    assert checkpoints.latest() == tmp_path / "global_step_1"


def test_a_run_directory_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    run_dir = open_run_dir(tmp_path / "run", resume=False, overwrite=False)
    (run_dir / METRICS).write_text("{}\n")
    with pytest.raises(UserError, match="holds a run"):
        open_run_dir(run_dir, resume=False, overwrite=False)
    assert open_run_dir(run_dir, resume=True, overwrite=False) == run_dir
    assert (run_dir / METRICS).exists()
    open_run_dir(run_dir, resume=False, overwrite=True)
    assert not (run_dir / METRICS).exists()
    with pytest.raises(UserError, match="holds no run"):
        open_run_dir(tmp_path / "other", resume=True, overwrite=False)


@pytest.mark.parametrize(
    ("files", "flags", "words"),
    [
        (["config.yaml", "src/main.py"], {"overwrite": True}, "--overwrite would delete src in "),
        (
            ["config.yaml", ".git/HEAD", "a", "b", "c"],
            {"overwrite": True},
            r"delete \.git, a, b and more in .*, which no run",
        ),
        (["config.yaml"], {"overwrite": True, "resume": True}, "give one of the two"),
        (["config.yaml"], {}, "holds a run"),
        (["metrics.jsonl"], {}, "holds a run"),
    ],
)
def test_only_a_run_is_ever_deleted(tmp_path: Path, files: list[str], flags: dict[str, bool], words: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("kept")
    with pytest.raises(UserError, match=words):
        open_run_dir(tmp_path, **{"resume": False, "overwrite": False, **flags})
    assert all((tmp_path / name).read_text() == "kept" for name in files)


@pytest.mark.parametrize(
    ("place", "words"), [("file", "is a file"), ("file/below", "cannot be written"), ("/proc/x", "cannot")]
)
def test_a_run_directory_that_cannot_be_written_is_one_sentence(tmp_path: Path, place: str, words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=words) as caught:
        open_run_dir(tmp_path / place, resume=False, overwrite=False)
    assert place in str(caught.value)


def test_metrics_lines_are_json_even_with_nan(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.metrics(1, {"a": float("nan"), "b": np.float32(0.5), "c": 2})
    lines, offset = read_jsonl(tmp_path / METRICS)
    assert (lines[0]["a"], lines[0]["b"], lines[0]["c"]) == (None, 0.5, 2)
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"half": ')
    assert read_jsonl(tmp_path / METRICS, offset=offset) == ([], offset)


def test_cpu_shims_let_verl_open_a_process_group() -> None:
    """verl asks for "cpu:gloo,cpu:nccl" on a CPU: torch refuses, and accepts after `apply`."""
    code = (
        "import torch.distributed as d, sys\n"
        "if sys.argv[1] == 'with': from vision_rl.engine.verl_cpu import apply; apply()\n"
        "d.init_process_group('cpu:gloo,cpu:nccl', store=d.HashStore(), rank=0, world_size=1)\n"
        "import torch; torch.cpu.get_rng_state(); torch.cpu.mem_get_info()\n"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    codes = {
        how: subprocess.run([sys.executable, "-c", code, how], env=environment, capture_output=True).returncode
        for how in ("with", "without")
    }
    assert codes["with"] == 0
    assert codes["without"] != 0


@pytest.mark.parametrize(
    ("good", "failed", "least", "ends"),
    [(0, 32, 32, True), (0, 31, 32, False), (1, 31, 32, False), (0, 2, 1, True), (1, 1, 1, False), (0, 0, 1, False)],
)
def test_a_step_without_one_usable_rollout_ends_the_run(
    good: int, failed: int, least: int, ends: bool, tmp_path: Path
) -> None:
    """A model server that answers every call with an error would else cost all attempts of all rollouts first."""
    daemon = VisionDaemon.__new__(VisionDaemon)
    daemon.log, daemon.step, daemon.is_train, daemon.tasks = (
        RunLog(tmp_path),
        3,
        True,
        {str(n): ("g", TASK) for n in range(99)},
    )
    rollouts = [FinishedRollout(f"g{n}", "g", TASK, [TURN], {"reward": 0.0}) for n in range(good)]
    rollouts += [FinishedRollout(f"f{n}", "g", TASK, failure="Odd", reason="Odd: code 500") for n in range(failed)]
    daemon.finished = {rollout.rollout_id: rollout for rollout in rollouts}
    if not ends:
        daemon._check_hope(least)
        return
    with pytest.raises(UserError, match=rf"first {failed} of 99 train rollouts of step 3 all failed .*Odd: code 500"):
        daemon._check_hope(least)
    assert [line["rollout_id"] for line in read_jsonl(tmp_path / ROLLOUTS)[0]] == [r.rollout_id for r in rollouts]


@pytest.mark.parametrize(
    ("traceback", "said"),
    [
        ('  File "a.py", line 1, in f\nValueError: no memory\n', "ValueError: no memory"),
        (
            "A: x\nRuntimeError: first\n  File y\npkg.mod.OtherError: 1 fault\n  Value error, too long\n",
            "pkg.mod.OtherError: 1 fault Value error, too long",
        ),
        ("no exception here\nlast line", "last line"),
        ("ray.exceptions.RayTaskError(KeyError): task\n  File z\nKeyError: 'x'", "KeyError: 'x'"),
    ],
)
def test_the_end_of_a_traceback_is_told(traceback: str, said: str) -> None:
    assert last_error(traceback) == said
