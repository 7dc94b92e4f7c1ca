"""The wheel: built from the repository and unpacked elsewhere, it has what a run needs, presets and tiny model included."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vision_rl.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel holds and nothing else of this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "uv", "build", "--wheel", "--quiet", "--out-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    [wheel] = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(installed: Path, *command: str) -> str:
    """What a command prints that runs from a folder apart, with the wheel's modules and not the checkout's."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, *command], cwd=installed.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_resolves_the_demo_and_knows_the_models(installed: Path) -> None:
    shown = run(installed, "-m", "train_agent", "--dry-run")
    assert "actor_rollout_ref.rollout.n" in shown and str(installed) in shown, "the tiny model of the wheel"
    assert "Qwen2.5-VL" in run(installed, "-m", "train_agent", "--list-models")


ENTRY = """
import sys
from importlib.metadata import entry_points
[point] = entry_points(group="console_scripts", name="vision-rl")
sys.argv = ["vision-rl", *sys.argv[1:]]
sys.exit(point.load()())
"""


@pytest.mark.slow
def test_the_one_command_of_the_wheel_runs_each_other(installed: Path) -> None:
    """As pip's script calls it; each command answers from the wheel, and a shell completes its options and presets."""
    listed = run(installed, "-c", ENTRY, "--help")
    for name in COMMANDS:
        assert name in listed and f"usage: vision-rl {name}" in run(installed, "-c", ENTRY, name, "--help")
    assert "vqav2" in run(installed, "-c", ENTRY, "sets")
    script = installed.parent / "completion.bash"
    script.write_text(run(installed, "-c", ENTRY, "completion", "bash"))
    words = "COMP_WORDS=(vision-rl train --preset gpu_2); COMP_CWORD=3"
    asked = f"source {script}; {words}; _shtab_vision_rl; echo ${{COMPREPLY[@]}}"
    shell = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
    assert "gpu_24gb" in shell.stdout and "gpu_40gb" not in shell.stdout, shell.stderr


@pytest.mark.slow
@pytest.mark.parametrize("module", ["vqa_agent", "grounding_agent", "worker", "evaluate_agent", "data_utils"])
def test_every_command_of_the_wheel_starts(module: str, installed: Path) -> None:
    assert "usage:" in run(installed, "-m", module, "--help")
