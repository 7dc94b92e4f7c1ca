"""What unmodified verl 0.6.1 needs to run its FSDP2 worker on a machine without an accelerator.

Installed in every Ray worker by `runtime_env["worker_process_setup_hook"]`; does nothing where CUDA is available.
It can go when verl runs on plain CPUs (verl's `get_torch_device()` returns `torch.cpu`, which lacks what follows).
"""

from __future__ import annotations

import functools
import gc
from typing import Any

DEVICE_CLASH = "cpu:gloo,cpu:"


def apply_without_collecting() -> None:
    """Fill in `torch.cpu` and repair the process-group backend; a no-op with CUDA or when already applied."""
    import torch

    if not torch.cuda.is_available():
        _complete_torch_cpu()
        _accept_cpu_process_group()
        # FSDP2 keeps a reference model in pinned memory (fsdp_workers.py:516); only an accelerator needs that, and has it.
        torch.Tensor.pin_memory = lambda self, device=None: self  # type: ignore[method-assign, assignment]


def apply() -> None:
    """`apply_without_collecting`, and no explicit garbage collection."""
    import torch

    apply_without_collecting()
    if torch.cuda.is_available():
        return
    # verl's aggressive_empty_cache() (utils/memory_utils.py) collects garbage up to three times in each of several calls
    # per step: 1 to 1.4 s that free no device memory here. Python's own generational collection goes on.
    gc.collect = lambda generation=2: 0  # type: ignore[assignment]


def _complete_torch_cpu() -> None:
    """The memory and RNG calls that fsdp_workers.py, memory_utils.py and flops_counter.py make on the device module."""
    import psutil
    import torch

    def nothing(*_args: Any, **_kwargs: Any) -> None:
        return None

    def zero(*_args: Any, **_kwargs: Any) -> int:
        return 0

    def memory(*_args: Any) -> tuple[int, int]:
        return psutil.virtual_memory().available, psutil.virtual_memory().total

    missing = {
        "empty_cache": nothing,
        "reset_peak_memory_stats": nothing,
        "ipc_collect": nothing,
        "set_per_process_memory_fraction": nothing,
        "memory_allocated": zero,
        "memory_reserved": zero,
        "max_memory_allocated": zero,
        "max_memory_reserved": zero,
        "mem_get_info": memory,
        "get_rng_state": lambda *_args: torch.get_rng_state(),
        "set_rng_state": lambda state, *_args: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "manual_seed_all": torch.manual_seed,
        "get_device_name": lambda *_args: "CPU",
    }
    for name, function in missing.items():
        if not hasattr(torch.cpu, name):
            setattr(torch.cpu, name, function)


def _accept_cpu_process_group() -> None:
    """verl's fsdp_workers.py asks for "cpu:gloo,cpu:nccl" on a CPU; torch rejects a device named twice."""
    import torch.distributed as dist

    original = dist.init_process_group
    if getattr(original, "accepts_cpu_clash", False):
        return

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(backend, str) and backend.startswith(DEVICE_CLASH):
            backend = "gloo"
        return original(backend, *args, **kwargs)

    init_process_group.accepts_cpu_clash = True  # type: ignore[attr-defined]
    dist.init_process_group = init_process_group
    dist.distributed_c10d.init_process_group = init_process_group
