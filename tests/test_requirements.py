"""The three sets of packages resolve, their files say why, and `make` finds a Python that runs."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"
SETS = {"cpu": ("cpu", "dev", "notebook"), "gpu": ("gpu",), "sglang": ("sglang",)}
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.mark.timeout(300)
@pytest.mark.skipif(UV is None, reason="uv is not installed (make install brings it)")
@pytest.mark.parametrize("name", SETS)
@pytest.mark.slow
def test_every_set_resolves_to_its_constraints(name: str) -> None:
    extras = [word for extra in SETS[name] for word in ("--extra", extra)]
    done = subprocess.run(
        [
            *(str(UV), "pip", "compile", "pyproject.toml", *extras, "--python", sys.executable, "--no-header"),
            *("--constraints", f"requirements/{name}-constraints.txt"),
            *("--overrides", f"requirements/{name}-overrides.txt"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )  # fmt: skip
    if re.search("error sending request|dns error|Connect|timed out", done.stderr):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    assert "verl==0.9.1" in done.stdout and "torch==2.11.0" in done.stdout


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda path: path.name)
def test_requirement_files_name_versions_and_no_place(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("#"), "what the file is"
    for line in lines:
        assert not re.search(r"://|@ |^-|\.whl|localhost|/", line.split("#")[0]), line


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.glob("*-overrides.txt")), ids=lambda path: path.name)
def test_every_override_has_its_reason(path: Path) -> None:
    lines = path.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if not line.startswith("#"):
            assert before.startswith("#") or line.startswith("intel-openmp"), f"{line}: say why, on the line above"


def test_every_exact_pin_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    pins = [line for line in text.splitlines() if re.match(r'\s*"[\w\[\]-]+==', line)]
    assert len(pins) >= 6 and all("#" in line for line in pins)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_takes_a_python_that_runs(tmp_path: Path) -> None:
    """pyenv's python3.12 in the PATH fails where no such version is chosen; the next candidate is taken."""
    home, folder = tmp_path / "home", tmp_path / "bin"
    pyenv = home / ".pyenv" / "versions" / "3.12.9" / "bin"
    for place in (folder, pyenv):
        place.mkdir(parents=True)
    for tool in ("make", "sh", "test", "echo"):
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    shim = folder / "python3.12"
    shim.write_text("#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)

    def chosen(environment: dict[str, str]) -> str:
        done = subprocess.run(
            [str(folder / "make"), "-s", "python"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    environment = {"PATH": str(folder), "HOME": str(home)}
    assert chosen(environment) == "", "a shim that fails is no Python"
    (pyenv / "python3.12").symlink_to(sys.executable)
    assert chosen(environment) == str(pyenv / "python3.12")
    assert chosen(environment | {"PYENV_ROOT": str(tmp_path)}) == ""
    assert chosen(environment | {"PYTHON": "/opt/mine"}) == "/opt/mine"
