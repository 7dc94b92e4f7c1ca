"""The order of docs/layout.md, held to."""

from __future__ import annotations

import networkx as nx
import pytest

from tests import imports, reached, walks


def test_imports_run_one_way_over_at_most_ten_floors() -> None:
    graph = imports.rooms(commands=True)
    assert graph.has_edge("training", "rollout") and len(graph) > 30, "the scan finds what there is"
    assert graph.has_edge("vqa_agent", "evaluation") and graph.has_edge("worker", "tasks"), "as text, and at the top"
    assert nx.is_directed_acyclic_graph(graph), nx.find_cycle(graph)
    assert len(imports.floors(graph)) <= 10, nx.dag_longest_path(graph)


def test_no_file_is_longer_than_a_reader_keeps_in_mind() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in imports.modules().items()}
    assert {name: count for name, count in lines.items() if count > 400} == {}


@pytest.mark.parametrize("question", walks.WALKS)
def test_the_files_of_a_walk_are_there(question: str) -> None:
    assert [file for file in walks.WALKS[question][1].split() if not (imports.ROOT / file).is_file()] == []


def test_commands_reach_every_line_of_the_package() -> None:
    """What only tests or benchmarks call is no part of the product: delete it, or move it to where it is called."""
    assert reached.unreached() == []


def test_no_import_changes_another_module() -> None:
    """A patch of a library is applied by one named call where a process begins: else the order of imports decides behaviour."""
    known = {"vision_rl": ["sys.excepthook"]}  # the first import of any command
    known["vision_rl.serving.vllm_server"] = ["vllm_async_server.get_vision_placeholder_token_ids"]
    changed = {name: found for name, path in imports.modules().items() if (found := imports.patched(path))}
    assert {name: found for name, found in changed.items() if name.startswith(imports.PACKAGE)} == known


@pytest.mark.parametrize("framework", imports.FRAMEWORKS)
def test_a_framework_is_known_to_its_rooms_only(framework: str) -> None:
    assert imports.users_of(framework) == imports.FRAMEWORKS[framework]


def test_the_page_is_up_to_date() -> None:
    assert imports.PAGE.read_text(encoding="utf-8") == imports.page(), "run `python -m tests.imports`"
