"""The count of devices on a stand-in for NVIDIA's driver; the GPU meter on one for nvidia-smi."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from vision_rl.platform.gpu import GpuMeter, cuda_devices

DRIVER = """
#include <stdlib.h>
int cuInit(unsigned flags) { const char *ids = getenv("CUDA_VISIBLE_DEVICES"); return ids && !*ids ? 100 : FAILS; }
int cuDeviceGetCount(int *count) { *count = 3; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build a driver with")
@pytest.mark.parametrize(("fails", "visible", "found"), [(0, "0,1,2", 3), (0, "", 0), (999, "0", 0)])
def test_the_driver_counts_the_devices(
    fails: int, visible: str, found: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", f"-DFAILS={fails}", "-o", str(library), "-x", "c", "-"]
    subprocess.run(command, input=DRIVER, text=True, check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cuda_devices() == found
    library.unlink()
    assert cuda_devices() == 0


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "nvidia-smi"


def write(smi: Path, script: str) -> None:
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)


def read_soon(meter: GpuMeter, seconds: float = 5.0) -> dict[str, float]:
    deadline = time.monotonic() + seconds
    while not (found := meter.read()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_devices_and_samples_are_averaged_and_the_fullest_counts(smi: Path) -> None:
    write(smi, "printf '80, 10000\\n40, 20000\\n[N/A], 99999\\nnonsense\\n60, 15000\\n'; sleep 30")
    with GpuMeter() as meter:
        time.sleep(0.5)
        assert read_soon(meter) == pytest.approx({"gpu/utilisation": 60.0, "gpu/memory_gb": 20.97152})
        assert meter.read() == {}


def test_the_sampler_ends_with_the_block(smi: Path, tmp_path: Path) -> None:
    write(smi, f"echo $$ > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/pid; exec sleep 60")
    with GpuMeter():
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    number = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_no_driver_measures_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with GpuMeter() as meter:
        assert meter.read() == {}


def test_a_driver_that_fails_measures_nothing(smi: Path) -> None:
    write(smi, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    with GpuMeter() as meter:
        time.sleep(0.3)
        assert meter.read() == {}
