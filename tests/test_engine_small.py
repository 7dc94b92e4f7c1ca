"""The engine's small parts: trace packing, checkpoints, run directory, limits, advantages, summary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agentlightning import emit_reward
from agentlightning.types import Span as AgentSpan
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto

from vision_rl.actor.mismatch import check_mismatch, mismatch_metrics
from vision_rl.errors import UserError
from vision_rl.models.checks import check_model
from vision_rl.rollout.trace import Turn, pack, reward_from_spans, turn_attributes, turns_from_spans, unpack
from vision_rl.run.checkpoints import Checkpoints
from vision_rl.run.directory import open_run_dir
from vision_rl.run.failures import RolloutFailure
from vision_rl.run.last_words import last_error
from vision_rl.run.log import METRICS, RunLog, read_jsonl
from vision_rl.settings import Checkpoints as CheckpointSettings
from vision_rl.settings import Integrity
from vision_rl.training.advantages import group_metrics, rollout_advantages
from vision_rl.training.rollouts import FinishedRollout, rollout_metrics
from vision_rl.training.samples import transition_samples

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
    second = Turn([9], [8], [-1.0], [], "no", "length", {"temperature": 0.3, "stop": ["."]})
    spans: Any = [Span(second, 7), Span(TURN, 3)]
    assert turns_from_spans(spans) == [TURN, second]


def test_failed_rollouts_count_as_zero_and_are_not_trained_on() -> None:
    good = FinishedRollout("a", "g", TASK, [TURN], {"reward": 1.0, "accuracy": 1.0})
    bad = FinishedRollout("b", "g", TASK, [TURN], {"reward": 1.0, "accuracy": 1.0}, failure=RolloutFailure.TIMEOUT)
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
    metrics = mismatch_metrics(batch, np.array([True]))
    assert metrics == pytest.approx({"mismatch/logprob_max": 0.2, "mismatch/logprob_mean": 0.1})


def test_older_samples_have_a_mismatch_of_their_own() -> None:
    """In the asynchronous modes they differ rightly; the limit is on those that the current weights have sampled."""
    batch = batch_of([1.0, 1.0], ["g", "g"], ["a", "b"])
    batch.batch["old_log_probs"] = torch.tensor([[0.2, 0.0, 9.0], [2.0, 1.0, 9.0]])
    metrics = mismatch_metrics(batch, np.array([True, False]))
    assert metrics["mismatch/logprob_max"] == pytest.approx(0.2)
    assert metrics["mismatch/stale_logprob_mean"] == pytest.approx(1.5)


@pytest.mark.parametrize("reward", [0.0, 0.9, 1.0, 0.1 + 0.2])
@pytest.mark.parametrize("estimator", ["grpo", "rloo", "opo", "reinforce_plus_plus_baseline", "gpg"])
def test_equal_rewards_have_exactly_no_advantage(estimator: str, reward: float) -> None:
    algorithm = OmegaConf.create({"adv_estimator": estimator, "norm_adv_by_std_in_grpo": True, "gamma": 1.0})
    batch = batch_of([reward] * 8 + [1.0, 0.0], ["g"] * 8 + ["h"] * 2, list("abcdefghij"))
    advantages = rollout_advantages(batch, algorithm)
    assert (advantages[:8] == 0).all()
    assert (advantages[8:, 0] != 0).any()


@pytest.mark.parametrize("asked", [{}, {"temperature": 8, "seed": 2}])
@pytest.mark.parametrize(("value", "fits"), [(0.05, True), (0.2, False), (float("nan"), False)])
def test_a_run_stops_when_actor_and_rollout_disagree(value: float, fits: bool, asked: dict[str, int]) -> None:
    metrics = {"mismatch/logprob_max": value, "mismatch/logprob_mean": 0.0}
    limits = Integrity(logprob_mismatch_max=0.1, logprob_mismatch_mean=None)
    if fits:
        check_mismatch(metrics, limits, 3, asked)
    else:
        with pytest.raises(UserError, match=r"step 3.*logprob_mismatch_max=0.1") as error:
            check_mismatch(metrics, limits, 3, asked)
        assert ("Requests set seed (2 rollouts), temperature (8 rollouts)" in str(error.value)) is bool(asked)


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


FAILED_START = {
    ".lock": "",
    "config.yaml": "a: 1\n",
    "events.jsonl": '{"time": 1, "kind": "error"}\n',
    "logs/a.err": "x",
}


@pytest.mark.parametrize(
    ("more", "again"),
    [
        ({}, True),
        ({"metrics.jsonl": '{"step": 0, "val/reward": 0.5}\n', "rollouts.jsonl": "", "summary.json": "{}"}, True),
        ({"metrics.jsonl": '{"step": 0}\n{"step": 1}\n'}, False),
        ({"checkpoints/global_step_1/trainer.pt": "x"}, False),
        ({"notes.txt": "mine"}, False),
    ],
    ids=["nothing done", "validated only", "a step done", "a checkpoint", "somebody else's file"],
)
def test_a_start_that_failed_may_be_started_again(more: dict[str, str], again: bool, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for name, content in {**FAILED_START, **more}.items():
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text(content)
    if again:
        assert open_run_dir(run_dir, resume=False, overwrite=False) == run_dir
        assert [path.name for path in run_dir.iterdir()] == [".lock"]
    else:
        with pytest.raises(UserError, match="holds a run"):
            open_run_dir(run_dir, resume=False, overwrite=False)
        assert all((run_dir / name).read_text() == content for name, content in more.items())


def test_a_run_directory_is_its_owners(tmp_path: Path) -> None:
    """In a process of its own, because all that is written later is meant too."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from vision_rl.files import write_bytes\n"
        "from vision_rl.run.directory import open_run_dir\n"
        "run = open_run_dir(Path(sys.argv[1]), resume=False, overwrite=False)\n"
        "(run / 'checkpoints').mkdir()\n"
        "(run / 'checkpoints' / 'a').write_text('x')\n"
        "write_bytes(run / 'b', b'x')\n"
    )
    root, run = Path(__file__).parent.parent, tmp_path / "run"
    run.mkdir(mode=0o755)  # made by hand, before the run
    command = ["sh", "-c", 'umask 022; exec "$@"', "sh", sys.executable, "-c", script, str(run)]
    subprocess.run(command, cwd=root, check=True, timeout=60)
    for path in (run, *run.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def whole_folder(folder: Path) -> None:
    """What a model folder must have, by name."""
    for name in ("preprocessor_config.json", "chat_template.jinja", "pytorch_model.bin"):
        (folder / name).write_text("{}")


INDEX = {"weight_map": {"a": "model-00001-of-00003.safetensors", "b": "model-00002-of-00003.safetensors", "c": "x.bin"}}


@pytest.mark.parametrize(
    ("gone", "files", "words"),
    [
        ("", {}, ""),
        ("preprocessor_config.json", {}, r"lacks preprocessor_config\.json; copy it from the original model"),
        ("preprocessor_config.json", {"processor_config.json": {}}, ""),
        ("chat_template.jinja", {}, r"has no chat template \(chat_template\.jinja, .*take the instruction-tuned model"),
        ("chat_template.jinja", {"tokenizer_config.json": {"model_max_length": 1}}, "has no chat template"),
        ("chat_template.jinja", {"tokenizer_config.json": {"chat_template": "{{ x }}"}}, ""),
        (
            "chat_template.jinja",
            {"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "x"}]}},
            "",
        ),
        ("chat_template.jinja", {"processor_config.json": {"chat_template": "{{ x }}"}}, ""),
        ("chat_template.jinja", {"chat_template.json": {"chat_template": "{{ x }}"}}, ""),
        ("pytorch_model.bin", {}, "lacks its weights"),
        (
            "",
            {"model.safetensors.index.json": INDEX, "x.bin": {}},
            r"lacks model-00001-of-00003\.safetensors and 1 more of 3 files of weights; download the folder again",
        ),
        (
            "",
            {"pytorch_model.bin.index.json": {"weight_map": {"a": "p.bin", "b": "q.bin"}}, "p.bin": {}},
            "lacks q.bin of 2",
        ),
        ("", {"pytorch_model.bin.index.json": {"weight_map": {"a": "p.bin"}}, "p.bin": {}}, ""),
    ],
)
def test_what_a_model_folder_lacks_is_named_at_once(
    tmp_path: Path, gone: str, files: dict[str, Any], words: str
) -> None:
    """The server would say so after three minutes."""
    whole_folder(tmp_path)
    (tmp_path / gone).unlink() if gone else None
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    if not words:
        check_model(tmp_path)
        return
    with pytest.raises(UserError, match=f"--model {tmp_path} {words}"):
        check_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "config", "key"),
    [
        ("config.json", {"auto_map": {"AutoModel": "x.Model"}}, "auto_map"),
        (
            "config.json",
            {"vision_config": {"_attn_implementation_internal": "org/kernel"}},
            "_attn_implementation_internal",
        ),
        ("tokenizer_config.json", {"a": [{"auto_map": ["x.Tokenizer", None]}]}, "auto_map"),
        ("config.json", {"auto_map": {}, "model_type": "x"}, ""),
    ],
)
def test_a_model_that_brings_code_is_refused_unless_it_is_trusted(
    tmp_path: Path, name: str, config: dict[str, Any], key: str
) -> None:
    whole_folder(tmp_path)
    # The key may be written with escapes: JSON is compared, not text.
    (tmp_path / name).write_text(json.dumps(config).replace("auto_map", "auto\\u005fmap"))
    check_model(tmp_path, trusted=True)
    if not key:
        check_model(tmp_path)
        return
    with pytest.raises(UserError, match=f"{name} has {key}, which runs code.*trust_remote_code=true"):
        check_model(tmp_path)


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
def test_the_end_of_a_traceback_is_reported(traceback: str, said: str) -> None:
    assert last_error(traceback) == said


def test_the_last_reward_that_was_emitted_counts() -> None:
    """Spans come in any order; an attempt that emits twice corrects itself."""
    spans: list[Any] = []
    for number, value in ((9, 1.0), (4, 0.25)):
        core = emit_reward({"reward": value}, primary_key="reward", propagate=False)
        spans.append(AgentSpan.from_core_fields(core, rollout_id="r", attempt_id="a", sequence_id=number))
    assert reward_from_spans(spans) == reward_from_spans(spans[::-1]) == {"reward": 1.0}
