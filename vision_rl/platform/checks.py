"""Check that a run fits the machine: cores and memory of a CPU run, the GPUs that a preset asks for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import psutil

from vision_rl.errors import UserError
from vision_rl.platform.gpu import check_build, cpu_build, cuda_devices

CPU_CORES = 2
CPU_MEMORY_GIB = 9
"""The tiny model's run was measured at 7.3 GB at its peak."""


def check_machine(cpu: bool) -> None:
    """Raise `UserError` if a CPU run cannot fit this machine."""
    if not cpu:
        return
    cores = len(os.sched_getaffinity(0))
    if cores < CPU_CORES:
        raise UserError(
            f"the cpu preset needs {CPU_CORES} cores, this process may use {cores}; give it more (taskset, --cpus)"
        )
    available = psutil.virtual_memory().available / 2**30
    if available < CPU_MEMORY_GIB:
        raise UserError(
            f"the cpu preset needs {CPU_MEMORY_GIB} GiB of free memory, {available:.1f} GiB are there; close something"
        )


def check_devices(verl: Mapping[str, Any], preset: str) -> None:
    """Raise `UserError` if a run on this machine alone asks for more GPUs than it has; of a cluster only Ray knows.
    And for a CPU run by vLLM's CUDA build."""
    ray_init, trainer = verl["ray_kwargs"]["ray_init"], verl["trainer"]
    check_build(trainer["device"] == "cpu")
    if ray_init.get("address") or os.environ.get("RAY_ADDRESS"):
        return
    wanted = trainer["n_gpus_per_node"] * trainer["nnodes"]
    named = ray_init.get("num_gpus")  # the cpu preset's one is logical
    if named is not None:
        found, cure = named, f"set ray_kwargs.ray_init.num_gpus={wanted} as well"
    elif cpu_build():
        found, cure = 0, "vLLM is its CPU build here: install the gpu extra (README), or use --preset cpu"
    else:
        found = cuda_devices()
        cure = (
            f"lower that to {found}, or name Ray's cluster (--preset multi_node)"
            if found
            else "nvidia-smi shows whether the driver works; without a GPU use --preset cpu"
        )
    if wanted > found:
        raise UserError(
            f"preset {preset} wants {wanted} GPU{'s' * (wanted != 1)} (trainer.n_gpus_per_node x trainer.nnodes) and "
            f"{found or 'none'} can be used here; {cure}"
        )
