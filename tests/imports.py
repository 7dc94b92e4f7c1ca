"""Which folder of `vision_rl` imports which: the diagram in docs/layout.md, and the order that it shows.

    python -m tests.imports          # writes docs/layout.md

A room is a folder of `vision_rl`, or a module that stands beside the folders. Commands (modules that are run by
`python -m`) stand above all rooms and may import any; imports for type hints alone do not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "vision_rl"
PAGE = ROOT / "docs" / "layout.md"
FRAMEWORKS: dict[str, set[str]] = {
    "agentlightning": {"rollout", "training", "preflight"},
    "verl": {"training", "serving", "actor", "platform", "config", "export", "preflight", "rewards"},
    "vllm": {"serving", "platform", "preflight"},
    "sglang": {"serving"},
    "ray": {"training", "serving"},
}
"""The rooms that may import a framework."""
TEXT = """# Where things are

The folders of `vision_rl`. Bottom: modules that import nothing of ours. An arrow means *imports*; indirect arrows are not drawn.
`python -m tests.imports` writes this page. `tests/test_layout.py` fails on a circle, on a page that is out of date, and on
a folder that imports a framework which is not its own.

```mermaid
flowchart BT
{arrows}
```

| folder or module | what it holds |
|---|---|
{rows}

Each framework is imported by these folders only (`tests/test_layout.py`):

| framework | folders that import it |
|---|---|
{frameworks}
"""


def modules() -> dict[str, Path]:
    """The package's modules by dotted name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a module imports when it runs, wherever in it; of `from a import b` both `a` and `a.b`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hints = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in hints:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def is_command(name: str, path: Path) -> bool:
    return name.endswith(".__main__") or "if __name__ ==" in path.read_text(encoding="utf-8")


def room(name: str) -> str:
    """Of a dotted name of ours: the folder, or the module beside the folders."""
    return name.split(".")[1] if "." in name else ""


def rooms() -> nx.DiGraph:
    """An edge (a, b) where a module of room a imports one of room b."""
    known = modules()
    graph = nx.DiGraph()
    for name, path in known.items():
        if is_command(name, path) or not room(name):
            continue
        graph.add_node(room(name))
        for target in imported(path):
            if target in known and room(target) not in ("", room(name)):
                graph.add_edge(room(name), room(target))
    return graph


def users_of(framework: str) -> set[str]:
    """The rooms in which a module imports a framework, commands included."""
    return {
        room(name) for name, path in modules().items() if framework in {one.split(".")[0] for one in imported(path)}
    }


def page() -> str:
    """docs/layout.md. Raises `networkx.NetworkXError` where imports run in a circle."""
    graph = nx.transitive_reduction(rooms())
    order = list(reversed(list(nx.lexicographical_topological_sort(graph))))
    arrows = [f"    {a} --> {b}" for a, b in sorted(graph.edges, key=lambda edge: [order.index(one) for one in edge])]
    rows = []
    for name in order:
        folder = ROOT / PACKAGE / name
        source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        first = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        rows.append(f"| `{name}{'/' if folder.is_dir() else '.py'}` | {' '.join(first.split())} |")
    frameworks = [
        f"| {name} | {', '.join(f'`{one}`' for one in sorted(known)) or 'none'} |" for name, known in FRAMEWORKS.items()
    ]
    return TEXT.format(arrows="\n".join(arrows), rows="\n".join(rows), frameworks="\n".join(frameworks))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
