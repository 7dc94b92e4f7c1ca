"""Agent Lightning without litellm, which this project does not use (rollout/proxy.py) and which takes ten seconds to import.

`import agentlightning` imports litellm's whole proxy server in every process (agentlightning 0.3.0, llm_proxy.py:41, and
instrumentation/litellm.py). Both modules are answered for here: the first by a stand-in whose `LLMProxy` cannot be
built, the second as not installed, which Agent Lightning allows. `import litellm` itself stays as it is, for agents
that use it. Can go when Agent Lightning imports litellm where it uses it; tests/test_lean_import.py fails without it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

PROXY, INSTRUMENTATION = "agentlightning.llm_proxy", "agentlightning.instrumentation.litellm"


class LLMProxy:
    """In place of Agent Lightning's, for the type hints and `isinstance` checks of its trainer."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("Agent Lightning's LLMProxy is litellm's server; use vision_rl.rollout.proxy.VisionProxy")


class _WithoutLitellm(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == INSTRUMENTATION:
            raise ModuleNotFoundError(f"{fullname} is left out", name=fullname)
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == PROXY else None

    def exec_module(self, module: ModuleType) -> None:
        module.LLMProxy = LLMProxy  # type: ignore[attr-defined]
        module.__all__ = ["LLMProxy"]  # type: ignore[attr-defined]


def install() -> None:
    """Before the first `import agentlightning` of a process; later it changes nothing."""
    # Agent Lightning imports a module of its own that it has deprecated, and says so on the user's screen.
    warnings.filterwarnings("ignore", message="agentlightning.reward is deprecated")
    if "agentlightning" not in sys.modules:
        sys.meta_path.insert(0, _WithoutLitellm())
