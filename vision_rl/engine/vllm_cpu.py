"""vLLM platform plugin (its official extension point): the CPU build without Intel's IPEX, which PyPI does not have.

vLLM 0.11.0's CPU attention (`v1/attention/backends/cpu_attn.py:596`) needs IPEX whenever chunked prefill is on, and
`EngineArgs._set_default_args` (`engine/arg_utils.py:1548`) forces it on for every generative model, so that no option
avoids IPEX. `CpuPlatform` itself switches both off for MLA (`platforms/cpu.py:262-272`); this does the same without IPEX.
It can go when vLLM's CPU attention no longer needs IPEX (vLLM >= 0.12 has its own kernels).
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from vision_rl.gpu import cpu_build

FORK_ENGINE = "VISION_RL_FORK_ENGINE"
"""Environment variable: fork the engine process instead of spawning it (16 s to 5 s; there is no CUDA context to lose)."""


def platform() -> str | None:
    """The platform class for vLLM to use, or None to leave the choice to vLLM (its CUDA build, or IPEX is there).

    The build decides, not the devices: Ray hides these from actors that ask for none, such as the server's.
    """
    if not cpu_build() or find_spec("intel_extension_for_pytorch") is not None:
        return None
    return "vision_rl.engine.vllm_cpu_platform.NoIpexCpuPlatform"


def fork_engine() -> bool:
    """Whether this process was told to fork vLLM's engine process."""
    return os.environ.get(FORK_ENGINE) == "1"
