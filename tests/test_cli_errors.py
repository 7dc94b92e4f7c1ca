"""Bad input ends in one sentence that names the file, row or setting and the cure, before Ray or vLLM start."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from PIL import Image

import train_agent
from vision_rl.config.resolve import resolve
from vision_rl.errors import UserError
from vision_rl.platform import checks, gpu
from vision_rl.tiny import checkpoint_dir

GOOD_ROW = {"id": "1", "image_path": "a.png", "question": "What is it?", "answer": "a cat"}


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one good picture on a machine with memory; the environment is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_agent, "run_environment", lambda cpu, **_: {})
    memory = psutil.virtual_memory()._replace(available=64 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    Image.new("RGB", (84, 84), "red").save(tmp_path / "a.png")
    return tmp_path


def parquet(folder: Path, rows: list[dict[str, Any]], name: str = "rows.parquet") -> str:
    pd.DataFrame(rows).to_parquet(folder / name)
    return str(folder / name)


def data_flags(path: str) -> list[str]:
    other = Path(path).with_name(f"val-{Path(path).name}")
    shutil.copy(path, other)
    return ["--data-path", path, "--val-data-path", str(other)]


def missing_model(folder: Path) -> list[str]:
    return ["--model", str(folder / "no-such-model")]


def cut_model(folder: Path) -> list[str]:
    shutil.copytree(checkpoint_dir(), folder / "cut")
    with open(folder / "cut" / "model.safetensors", "r+b") as file:
        file.truncate(100_000)
    return [*data_flags(parquet(folder, [GOOD_ROW])), "--model", str(folder / "cut")]


def blind_model(folder: Path) -> list[str]:
    shutil.copytree(checkpoint_dir(), folder / "blind", ignore=shutil.ignore_patterns("preprocessor_config.json"))
    return [*data_flags(parquet(folder, [GOOD_ROW])), "--model", str(folder / "blind")]


def text_model(folder: Path) -> list[str]:
    (folder / "text").mkdir()
    (folder / "text" / "config.json").write_text(
        json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})
    )
    return ["--model", str(folder / "text")]


def without_columns(folder: Path) -> list[str]:
    return data_flags(parquet(folder, [{"id": "1", "text": "x"}]))


def missing_image(folder: Path) -> list[str]:
    return data_flags(parquet(folder, [GOOD_ROW, {**GOOD_ROW, "id": "2", "image_path": "gone.png"}]))


def corrupt_image(folder: Path) -> list[str]:
    (folder / "b.png").write_bytes(b"\x89PNG but not really")
    return data_flags(parquet(folder, [{**GOOD_ROW, "image_path": "b.png"}]))


def zero_rows(folder: Path) -> list[str]:
    pd.DataFrame([GOOD_ROW]).iloc[:0].to_parquet(folder / "empty.parquet")
    return data_flags(str(folder / "empty.parquet"))


def no_parquet(folder: Path) -> list[str]:
    (folder / "rows.parquet").write_text("not parquet")
    return data_flags(str(folder / "rows.parquet"))


def half_a_pair(folder: Path) -> list[str]:
    return ["--data-path", parquet(folder, [GOOD_ROW])]


def run_is_there(folder: Path) -> list[str]:
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").write_text("{}\n")
    return [*data_flags(parquet(folder, [GOOD_ROW])), "--run-dir", "run"]


def one_file_for_both(folder: Path) -> list[str]:
    path = parquet(folder, [GOOD_ROW])
    return ["--data-path", path, "--val-data-path", "./rows.parquet", "--dry-run"]


CASES: list[tuple[Callable[[Path], list[str]], list[str]]] = [
    (missing_model, ["no-such-model"]),
    (text_model, ["text", "vision"]),
    (blind_model, ["blind lacks preprocessor_config.json", "original model"]),
    (cut_model, ["model.safetensors has 100000 bytes of", "download"]),
    (without_columns, ["rows.parquet", "image_path"]),
    (missing_image, ["row 1", "gone.png", "verify"]),
    (corrupt_image, ["row 0", "b.png"]),
    (zero_rows, ["empty.parquet", "no rows"]),
    (no_parquet, ["rows.parquet"]),
    (half_a_pair, ["--val-data-path"]),
    (one_file_for_both, ["rows.parquet is given for training and for validation", "data_utils.py split"]),
    (lambda _: ["--varient", "dapo"], ["unknown option --varient; did you mean --variant?"]),
    (lambda _: ["--variant", "dpao", "--dry-run"], ["did you mean dapo?"]),
    (lambda _: ["agent.reward=exactmatch", "--dry-run"], ["did you mean exact_match?"]),
    (lambda _: ["agent.reward=exact", "--dry-run"], ["needs its --task"]),
    (run_is_there, ["--resume", "--overwrite"]),
    (lambda _: ["--resume", "--run-dir", "nothing"], ["nothing", "--resume"]),
    (lambda _: ["actor_rollout_ref.rollout.temprature=1"], ["temprature", "actor_rollout_ref.rollout.temperature"]),
    (lambda _: ["app.blank_pixel=true"], ["app.blank_pixel", "app.blank_pixels"]),
    (lambda _: ["+trainer.early_stopping_patience=5"], ["app.validation.patience"]),
]


@pytest.mark.parametrize(("arguments", "words"), CASES)
def test_one_sentence_and_exit_2(
    arguments: Callable[[Path], list[str]], words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(sys.modules)
    with pytest.raises(SystemExit) as exit_info:
        train_agent.main(arguments(folder))
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.startswith("error: ")
    assert error.strip().count("\n") == 0, error
    for word in words:
        assert word in error
    assert not {"ray", "vllm", "verl"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["data.train_batch_size=99"], "99"),
        (["--n-runners", "0"], "app.n_runners=0"),
        (["--task", "grounding"], "task"),
    ],
)
def test_a_start_that_is_refused_deletes_and_leaves_no_run(
    more: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*run_is_there(folder), "--overwrite", *more]
    with pytest.raises(SystemExit):
        train_agent.main(arguments)
    assert words in capsys.readouterr().err
    assert (folder / "run" / "metrics.jsonl").exists()
    with pytest.raises(SystemExit):
        train_agent.main([*arguments, "--run-dir", "new"])
    assert not (folder / "new").exists()


def test_a_full_disk_is_named_with_the_configuration_it_does_not_take(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = data_flags(parquet(folder, [{**GOOD_ROW, "id": str(number)} for number in range(16)]))

    def full(path: Path, *_: Any, **__: Any) -> int:
        path.write_bytes(b"")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit) as exit_info:
        train_agent.main([*rows, "--run-dir", "new"])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and "config.yaml (No space left on device)" in error, error
    assert not (folder / "new" / "config.yaml").exists(), "whole or absent"


def test_port_in_use(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit):
            train_agent.main([*data_flags(parquet(folder, [GOOD_ROW])), "--llm-proxy", "--proxy-port", port])
    error = capsys.readouterr().err
    assert port in error
    assert "--proxy-port" in error


def test_too_few_cores_and_too_little_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = data_flags(parquet(folder, [GOOD_ROW]))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with pytest.raises(SystemExit):
        train_agent.main(arguments)
    assert "cores" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    memory = psutil.virtual_memory()._replace(available=2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(SystemExit):
        train_agent.main(arguments)
    assert "memory" in capsys.readouterr().err


# The logical GPUs of a CPU run follow from the ranks, unless somebody says another number.
TWO_RANKS_ONE_GPU = ["trainer.n_gpus_per_node=2", "ray_kwargs.ray_init.num_gpus=1"]


@pytest.mark.parametrize(
    ("cpu_build", "devices", "arguments", "words"),
    [
        (True, 8, ["--preset", "gpu_24gb"], ["gpu_24gb wants 1 GPU ", "none", "CPU build", "--preset cpu"]),
        (False, 0, ["--preset", "gpu_24gb"], ["wants 1 GPU ", "none", "nvidia-smi"]),
        (False, 1, ["--preset", "2x24gb"], ["wants 2 GPUs", "1 can be used", "lower that to 1"]),
        (False, 8, ["--preset", "8x80gb", "trainer.nnodes=2"], ["wants 16 GPUs", "8 can be used", "Ray's cluster"]),
        (True, 0, ["--preset", "cpu", *TWO_RANKS_ONE_GPU], ["cpu wants 2 GPUs", "ray_init.num_gpus=2"]),
    ],
)
def test_more_gpus_than_there_are(
    cpu_build: bool,
    devices: int,
    arguments: list[str],
    words: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in (checks, gpu):
        monkeypatch.setattr(module, "cpu_build", lambda: cpu_build)
        monkeypatch.setattr(module, "cuda_devices", lambda: devices)
    rows = data_flags(parquet(folder, [{**GOOD_ROW, "id": str(number)} for number in range(16)]))
    with pytest.raises(SystemExit) as exit_info:
        train_agent.main([*rows, *arguments, "--model", str(checkpoint_dir()), "--run-dir", "run"])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and not (folder / "run").exists()
    for word in words:
        assert word in error


@pytest.mark.parametrize("program", ["train", "doctor", "vqa_agent", "grounding_agent"])
def test_a_cuda_build_without_a_gpu_says_so_at_once(
    program: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said nothing for minutes, and ended in vLLM's log."""
    from vision_rl.evaluation import debug

    monkeypatch.chdir(folder)
    for module in (checks, gpu):
        monkeypatch.setattr(module, "cpu_build", lambda: False)
        monkeypatch.setattr(module, "cuda_devices", lambda: 0)
    with pytest.raises(SystemExit) as exit_info:
        if program.endswith("_agent"):
            debug.main(program.removesuffix("_agent"), [])
        else:
            train_agent.main(["--doctor"] * (program == "doctor"))
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and "is its CUDA build, and no GPU can be used here" in error


def test_enough_gpus_or_a_cluster_whose_gpus_ray_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(checks, "cpu_build", lambda: False)
    monkeypatch.setattr(checks, "cuda_devices", lambda: 1)
    for preset, fits in (("gpu_24gb", True), ("multi_node", True), ("cpu", True), ("8x80gb", False)):
        verl = resolve(preset, task="vqa").verl
        if not fits:
            with pytest.raises(UserError):
                checks.check_devices(verl, preset)
            monkeypatch.setenv("RAY_ADDRESS", "head:6379")
        checks.check_devices(verl, preset)


def test_overrides_may_stand_between_flags(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_agent.main(["data.seed=3", "--max-steps", "5", "agent.max_tokens=9", "--dry-run", "app.n_runners=1"])
    shown = {line.split(":")[0]: line for line in capsys.readouterr().out.splitlines()}
    for key, value in (("data.seed", "3"), ("trainer.total_training_steps", "5"), ("agent.max_tokens", "9")):
        assert f" {value} " in shown[key]
    assert shown["app.n_runners"].endswith("# override")


@pytest.mark.parametrize("preset", train_agent.presets())
def test_every_preset_takes_the_flags_of_the_command_line(
    preset: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_agent.main(["--preset", preset, "--dry-run", "--max-steps", "3", "--seed", "1", "--resume"])
    shown = capsys.readouterr().out
    for key, value in (("trainer.default_local_dir", folder / "runs" / "vqa" / "checkpoints"), ("data.seed", 1)):
        [line] = [line for line in shown.splitlines() if line.startswith(f"{key}: ")]
        assert str(value) in line and line.endswith("# flag")


def test_a_command_ends_without_a_last_look_through_its_objects() -> None:
    """Python's collects garbage three times before it ends, which takes seconds where torch is imported."""
    code = (
        "import atexit, gc; from vision_rl.errors import cli_errors\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\nwith cli_errors(): pass"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 1000
