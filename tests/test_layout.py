"""The order of docs/layout.md, held to."""

from __future__ import annotations

import subprocess
import sys

import networkx as nx
import pytest

from tests import imports


def test_imports_run_one_way() -> None:
    graph = imports.rooms()
    assert graph.has_edge("training", "rollout") and len(graph) > 15, "the scan finds what there is"
    assert nx.is_directed_acyclic_graph(graph), nx.find_cycle(graph)


@pytest.mark.parametrize("framework", imports.FRAMEWORKS)
def test_a_framework_is_known_to_its_rooms_only(framework: str) -> None:
    assert imports.users_of(framework) == imports.FRAMEWORKS[framework]


def test_the_page_is_up_to_date() -> None:
    assert imports.PAGE.read_text(encoding="utf-8") == imports.page(), "run `python -m tests.imports`"


@pytest.mark.parametrize("module", ["vision_rl.training.launch", "vision_rl.training.rollout_manager"])
def test_agent_lightning_comes_without_litellm(module: str) -> None:
    """Ten seconds of a core in the main process and in the trainer's, and hundreds of routes (rollout/lightning.py)."""
    check = (
        f"import sys, {module}, agentlightning as agl\n"
        "from agentlightning.instrumentation import LITELLM_INSTALLED\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] == 'litellm'), LITELLM_INSTALLED)\n"
        "try: agl.LLMProxy(port=1)\n"
        "except RuntimeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=True)
    imported, refused = done.stdout.splitlines()
    assert imported == "[] False" and "VisionProxy" in refused
