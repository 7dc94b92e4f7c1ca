"""A Python in which the trainer's packages are not installed: put this folder first in PYTHONPATH."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

MISSING = {"agentlightning", "verl", "vllm", "ray", "torch", "transformers", "litellm"}


class _Missing(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _Missing())
