"""The order of docs/layout.md, held to."""

from __future__ import annotations

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
