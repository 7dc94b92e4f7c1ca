"""Skip upstream imports that cost seconds and are not used: litellm by Agent Lightning, vLLM by verl's ranks.

`import agentlightning` imports litellm's whole proxy server in every process (agentlightning 0.3.0, llm_proxy.py:41, and
instrumentation/litellm.py). Both modules are answered for here: the first by a stand-in whose `LLMProxy` cannot be
built, the second as not installed, which Agent Lightning allows. `import litellm` itself stays as it is, for agents
that use it. Can go when Agent Lightning imports litellm where it uses it; tests/test_lean_import.py fails without it.

verl 0.9.1 imports its checkpoint engine for Ascend's NPUs everywhere (verl/checkpoint_engine/__init__.py), and with it vLLM and
torch's compiler: 1.4 of the 7.3 core seconds of a rank's start. Without torch_npu it is answered for as not installed, which
verl records. Can go when verl imports vLLM where it uses it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

ASCEND = "verl.checkpoint_engine.hccl_checkpoint_engine"
PROXY, INSTRUMENTATION = "agentlightning.llm_proxy", "agentlightning.instrumentation.litellm"


class LLMProxy:
    """In place of Agent Lightning's, for the type hints and `isinstance` checks of its trainer."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("Agent Lightning's LLMProxy is litellm's server; use vision_rl.rollout.proxy.VisionProxy")


class _WithoutUnused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == INSTRUMENTATION or (fullname == ASCEND and importlib.util.find_spec("torch_npu") is None):
            raise ModuleNotFoundError(f"{fullname} is left out", name=fullname)
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == PROXY else None

    def exec_module(self, module: ModuleType) -> None:
        module.LLMProxy = LLMProxy  # type: ignore[attr-defined]
        module.__all__ = ["LLMProxy"]  # type: ignore[attr-defined]


def install() -> None:
    """Before the first `import agentlightning`, or verl, of a process; later it changes nothing."""
    # Agent Lightning imports a module of its own that it has deprecated, and says so on the user's screen.
    warnings.filterwarnings("ignore", message="agentlightning.reward is deprecated")
    sys.meta_path.insert(0, _WithoutUnused())
