"""Agent Lightning without litellm.

`import agentlightning` loads litellm's whole proxy server (agentlightning/llm_proxy.py:41) and its telemetry
(instrumentation/litellm.py:13): ten seconds of a core in the main process and again in the trainer's, before either can do
anything, and hundreds of routes of code, for a proxy that no run starts (`proxy.py` is ours). Both modules are taken out
here, before Agent Lightning is imported. This can go once upstream imports its proxy where it is used.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class LLMProxy:
    """Stands where Agent Lightning's trainer looks for its own proxy. Raises `RuntimeError` for whoever wants one."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("Agent Lightning's LLMProxy is not loaded here; use vision_rl.rollout.proxy.VisionProxy")


def without_litellm() -> None:
    """Keep litellm out of Agent Lightning, unless that has been imported already."""
    if "agentlightning" in sys.modules:
        return
    proxy = ModuleType("agentlightning.llm_proxy", __doc__)
    vars(proxy).update(LLMProxy=LLMProxy, __all__=["LLMProxy"])
    sys.modules[proxy.__name__] = proxy
    # "Not installed", which upstream expects (instrumentation/__init__.py:18).
    sys.modules["agentlightning.instrumentation.litellm"] = None  # type: ignore[assignment]
