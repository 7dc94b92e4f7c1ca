"""A family that nobody has proven is trained on evidence alone; the proof in bfloat16, its yardstick and its controls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.tiny_models.families import build
from vision_rl.actor.mismatch import check_mismatch
from vision_rl.config.derived import LEAST
from vision_rl.config.resolve import resolve
from vision_rl.errors import UserError
from vision_rl.models.table import LOW_RESULTS, check_pairing, model_info, rounding
from vision_rl.platform.environment import run_environment
from vision_rl.preflight import evidence
from vision_rl.preflight.low_precision import ALL, judged, yardstick_of
from vision_rl.preflight.parity import Result
from vision_rl.preflight.parity_cells import TOOL_REPLY
from vision_rl.settings import Integrity

ROOT = Path(__file__).resolve().parents[1]
EQUAL = Result("m", "one picture", 1e-6, 1e-7, True, "equal")
REFUSED_REPLY = Result("m", TOOL_REPLY, None, None, None, "refused", "vLLM: the template knows no tool")
DIFFERS = Result("m", "video", 0.5, 0.1, True, "differs", "trainer from server: mean 0.1 nats")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a family that the table does not prove; the cache is empty."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return build("LFM2-VL", tmp_path / "lfm")


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (None, r"--doctor --model .*, with this run's preset, measures it"),
        ([], "'nothing' measured"),
        ([EQUAL, DIFFERS], r"'video' differs \(trainer from server: mean 0.1 nats\)"),
        ([EQUAL, REFUSED_REPLY], ""),
        ([EQUAL], ""),
    ],
)
def test_an_unproven_family_needs_evidence_in_which_all_is_equal(model: Path, results: Any, message: str) -> None:
    info = model_info(model)
    check_pairing(info)  # nothing that is known speaks against it
    if results is not None:
        evidence.keep(model, "float32", True, results)
    if not message:
        evidence.check_proven(info, "float32", True)
    else:
        with pytest.raises(UserError, match=message):
            evidence.check_proven(info, "float32", True)
    with pytest.raises(UserError, match="--doctor"):  # another precision, another kind of machine
        evidence.check_proven(info, "bfloat16", False)


def test_evidence_is_for_these_weights_this_configuration_and_these_versions(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence.keep(model, "float32", True, [EQUAL])
    evidence.check_proven(model_info(model), "float32", True)
    with pytest.raises(UserError, match="for vLLM only"):
        evidence.check_proven(model_info(model), "float32", True, "sglang")
    before = evidence.versions()
    monkeypatch.setattr(evidence, "versions", lambda: {**before, "vllm": "9.9"})
    with pytest.raises(UserError, match=r"the evidence of \d+-\d+-\d+ is for vllm " + before["vllm"]):
        evidence.check_proven(model_info(model), "float32", True)
    monkeypatch.undo()


@pytest.mark.parametrize("change", ["config.json", "processor_config.json", "model.safetensors"])
def test_another_configuration_or_other_names_of_weights_are_another_model(model: Path, change: str) -> None:
    before = evidence.fingerprint(model)
    if change.endswith(".json"):
        document = json.loads((model / change).read_text())
        (model / change).write_text(json.dumps({**document, "new": 1}))
    else:
        from safetensors.torch import load_file, save_file

        weights = load_file(model / change)
        save_file({name: tensor + 1 for name, tensor in weights.items()}, model / change)
        assert evidence.fingerprint(model) == before  # trained on
        save_file({**weights, "more": torch.zeros(1)}, model / change)
    assert evidence.fingerprint(model) != before


def test_a_proof_on_a_cpu_says_nothing_about_other_kernels_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    info = model_info(build("Gemma 3", tmp_path / "gemma"))
    evidence.check_proven(info, "float32", True)
    with pytest.raises(UserError, match=r"no GPU was measured.*--doctor"):
        evidence.check_proven(info, "bfloat16", False)


def test_a_run_says_which_command_makes_the_evidence(model: Path) -> None:
    command = [sys.executable, "train_agent.py", "--model", str(model), "--preset", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 2
    assert "LFM2-VL" in done.stderr and f"--doctor --model {model}" in done.stderr


def test_a_family_that_the_table_does_not_know_is_unproven_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "aya_vision", "vision_config": {}}))
    row = model_info(tmp_path).family
    assert (row.name, row.refused, row.trained) == ("aya_vision", "", False) and "does not know it" in row.unproven


# The proof in bfloat16


def cell(server: float, trainer: float, between: float) -> dict[str, torch.Tensor]:
    noise = torch.rand(200, generator=torch.Generator().manual_seed(0)) + 0.5  # mean 1
    return {"server": server * noise, "trainer": trainer * noise, "between": between * noise}


CONTROL = {"one picture": (cell(0.01, 0.01, 0.014), True), "text only": (cell(0.008, 0.008, 0.011), True)}
CAUGHT = {"black pictures": torch.full((9,), 0.5)}


@pytest.mark.parametrize(
    ("measured", "verdict", "reason"),
    [
        (cell(0.012, 0.012, 0.017), "equal", ""),
        (cell(0.03, 0.01, 0.03), "differs", "server from float32: mean"),
        (cell(0.01, 0.03, 0.03), "differs", "trainer from float32: mean"),
        (cell(0.012, 0.012, 0.03), "differs", "trainer from server: mean"),
    ],
)
def test_each_distance_is_held_against_the_control(measured: Any, verdict: str, reason: str) -> None:
    results = judged("new", {"one picture": (measured, True)}, CAUGHT, yardstick_of(CONTROL, own=False))
    assert [one.cell for one in results] == ["one picture", ALL, "black pictures"]
    assert results[0].verdict == results[1].verdict == verdict
    assert results[0].reason.startswith(reason)
    assert results[2].verdict == "equal"


def test_a_rare_large_difference_is_caught_where_the_mean_hides_it() -> None:
    rare = cell(0.006, 0.008, 0.01)
    rare["server"][:3] = 0.1
    [_, pooled] = judged("new", {"one picture": (rare, True)}, {}, yardstick_of(CONTROL, own=False))
    assert pooled.verdict == "differs" and pooled.reason.startswith("server from float32: p99")


def test_a_proof_that_does_not_see_black_pictures_is_none() -> None:
    blind = {"black pictures": torch.full((9,), 0.01)}
    last = judged("new", {"one picture": (cell(0.01, 0.01, 0.01), True)}, blind, yardstick_of(CONTROL, own=False))[-1]
    assert last.verdict == "differs" and "moved the trainer by 0.01 nats only" in last.reason


def test_a_model_of_the_users_own_is_held_against_its_own_rounding() -> None:
    own = {"one picture": (cell(0.012, 0.01, 0.02), True)}
    assert {one.verdict for one in judged("mine", own, CAUGHT, yardstick_of(own, own=True))} == {"equal"}
    off = {"one picture": (cell(0.05, 0.01, 0.05), True)}
    assert judged("mine", off, CAUGHT, yardstick_of(off, own=True))[0].reason.startswith("server from float32")


# What a run makes of it


def test_a_family_without_float32_is_served_in_bfloat16_with_the_limit_of_its_rounding(tmp_path: Path) -> None:
    folder = build("Qwen3.5", tmp_path)
    resolved = resolve("cpu", task="vqa", model=folder)
    rollout, integrity = resolved.verl["actor_rollout_ref"]["rollout"], resolved.app.integrity
    assert rollout["dtype"] == "bfloat16" and integrity.logprob_mismatch_max is None
    actor = resolved.verl["actor_rollout_ref"]["actor"]["fsdp_config"]["mixed_precision"]
    assert (actor["param_dtype"], actor["reduce_dtype"], rollout["enable_prefix_caching"]) == ("bf16", "fp32", False)
    assert rollout["engine_kwargs"]["vllm"]["mamba_ssm_cache_dtype"] == "float32"
    assert integrity.logprob_mismatch_mean == pytest.approx(3 * worst_cell("Qwen3.5"))
    assert any("takes no float32" in note or "take no float32" in note for note in resolved.notes)


@pytest.mark.parametrize(
    ("preset", "family", "overrides", "limits"),
    [
        ("cpu", "Qwen3-VL", [], (0.01, 0.001)),
        ("cpu", "Qwen3-VL", ["actor_rollout_ref.rollout.dtype=bfloat16"], (None, "measured")),
        ("gpu_40gb", "Qwen3-VL", [], (None, "measured")),
        ("gpu_40gb", "Qwen3.5", [], (None, "measured")),
        ("cpu", "Qwen3.5", ["app.integrity.logprob_mismatch_mean=0.2"], (None, 0.2)),
        ("cpu", "Qwen3-VL", ["app.integrity.logprob_mismatch_max=0.5"], (0.5, 0.001)),
        ("gpu_40gb", "Gemma 3", [], (None, 0.05)),  # three times its rounding is less
        ("gpu_40gb", "LFM2-VL", [], (None, 0.1)),  # nobody has measured it
    ],
)
def test_the_limit_is_that_of_preset_family_and_precision(
    preset: str, family: str, overrides: list[str], limits: Any, tmp_path: Path
) -> None:
    resolved = resolve(preset, overrides, task="vqa", model=build(family, tmp_path))
    found = resolved.app.integrity
    mean = pytest.approx(3 * worst_cell(family)) if limits[1] == "measured" else limits[1]
    assert (found.logprob_mismatch_max, found.logprob_mismatch_mean) == (limits[0], mean)


def test_the_limits_reason_says_whether_it_was_measured(tmp_path: Path) -> None:
    for family, reason in (
        ("Qwen3-VL", "3 times what bfloat16 does to Qwen3-VL, at least 0.05 (docs/models.md)"),
        ("LFM2-VL", "nobody has measured what bfloat16 does to LFM2-VL"),
    ):
        resolved = resolve("gpu_40gb", [], task="vqa", model=build(family, tmp_path))
        assert resolved.origin["app.integrity.logprob_mismatch_mean"].name == reason


def worst_cell(family: str) -> float:
    """The largest mean of a family's cells in the repository's matrix in bfloat16."""
    rows = [row for row in json.loads(LOW_RESULTS.read_text()) if row["family"] == family]
    return max(row["mean"] for row in rows if row["distances"] and row["verdict"] == "equal")


def test_the_limit_is_below_what_black_pictures_do() -> None:
    """Of every family in the repository's matrix in bfloat16: a trainer that sees nothing is stopped."""
    for row in json.loads(LOW_RESULTS.read_text()):
        if row["cell"] == "black pictures":
            assert max(3 * worst_cell(row["family"]), LEAST) < row["mean"], row["family"]


def test_what_is_no_rounding_does_not_widen_the_limit(tmp_path: Path) -> None:
    row = model_info(build("LLaVA-1.5", tmp_path)).family
    cell = {"family": row.name, "cell": "one picture", "verdict": "equal", "mean": 0.01, "distances": {"between": {}}}
    others = [
        {**cell, "cell": "two pictures", "verdict": "differs", "mean": 0.5},
        {**cell, "cell": "video", "mean": 0.4},  # which it is never shown
        {**cell, "cell": "black pictures", "mean": 0.9, "distances": None},
        {**cell, "family": "Qwen3-VL", "mean": 0.7},
    ]
    results = tmp_path / "low.json"
    assert rounding(row, results) is None
    results.write_text(json.dumps([cell, *others]))
    assert rounding(row, results) == 0.01


def test_the_log_says_how_much_of_the_limit_is_taken() -> None:
    metrics = {"mismatch/logprob_max": 0.004, "mismatch/logprob_mean": 0.0002}
    check_mismatch(metrics, Integrity(logprob_mismatch_max=0.01, logprob_mismatch_mean=0.001), 1, {})
    assert metrics["mismatch/share_of_limit"] == pytest.approx(0.4)
    with pytest.raises(UserError, match="more than"):
        check_mismatch(metrics, Integrity(logprob_mismatch_mean=0.0001), 1, {})


@pytest.mark.e2e
@pytest.mark.long
def test_pages_that_held_states_are_cleared(tmp_path: Path) -> None:
    """vLLM 0.24's CPU runner hands them out as they are: a probability of zero times NaN is NaN. The day that stock vLLM clears
    them, `clear_pages` can go."""
    model = build("Qwen3.5", tmp_path)
    environment = {**os.environ, **run_environment(True)}
    counts = {}
    for how in ("mended", "stock"):
        command = [sys.executable, "-m", "tests.dirty_pages", str(model), how]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        counts[how] = int(done.stdout.splitlines()[-1])
    assert counts["mended"] == 0 < counts["stock"]
