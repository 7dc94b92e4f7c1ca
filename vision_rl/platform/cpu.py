"""verl on a machine without an accelerator: a platform and an engine for "cpu" through verl's own plug-in points.

verl 0.9.1 has no CPU platform: without this plug-in it falls back to "nvidia" (plugin/platform/platform_manager.py:96), and
its FSDP engine is registered for "cuda" and "npu" only. The entry point group `verl.plugins` (pyproject.toml) loads this
module in every process that imports verl. Where CUDA is available it changes nothing.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry, set_platform


def _device_module() -> types.ModuleType:
    """`torch.cpu`, with the calls that verl makes on a device module and that `torch.cpu` lacks."""

    def nothing(*_args: Any, **_kwargs: Any) -> None:
        return None

    def zero(*_args: Any, **_kwargs: Any) -> int:
        return 0

    module = types.ModuleType("vision_rl_cpu")
    module.__getattr__ = lambda name: getattr(torch.cpu, name)  # type: ignore[method-assign]
    for name in ("empty_cache", "ipc_collect", "set_device", "synchronize", "reset_peak_memory_stats"):
        setattr(module, name, nothing)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, zero)
    own = {
        "set_per_process_memory_fraction": nothing,
        "mem_get_info": lambda *_args: (psutil.virtual_memory().available, psutil.virtual_memory().total),
        "get_rng_state": lambda *_args: torch.get_rng_state(),
        "set_rng_state": lambda state, *_args: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "manual_seed_all": torch.manual_seed,
        "get_device_name": lambda *_args: "CPU",
        "is_available": lambda: True,
        "device_count": lambda: 1,
    }
    for name, function in own.items():
        setattr(module, name, function)
    return module


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """Plain main memory and gloo. Ray counts ranks by logical "GPU"s, of which the preset says how many there are."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _device_module()

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return not torch.cuda.is_available()

    def current_device(self) -> str:  # type: ignore[override]
        return "cpu"  # as torch.cpu.current_device(); verl hands it to `tensor.to`

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False  # verl then sends weights through shared memory (vllm_rollout/bucketed_weight_transfer.py)

    def cudart(self) -> Any:
        return None


if not torch.cuda.is_available():
    # verl.protocol, imported before the plug-ins are loaded, may have settled on "nvidia" by now.
    set_platform(CpuPlatform())
