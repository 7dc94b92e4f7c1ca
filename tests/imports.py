"""Which folder of `vision_rl` imports which: the diagram in docs/layout.md, and the order that it shows.

    python -m tests.imports          # writes docs/layout.md

A room is a folder of `vision_rl`, or a module that stands beside the folders. The page shows the rooms alone; the order
holds for the commands as well: the modules that are run, the top-level files, and the folders beside the package.
Imports for type hints alone do not count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "vision_rl"
FOLDERS = (PACKAGE, "baselines", "examples", "scripts", "benchmarks")
TEXT_NAME = re.compile(r"[a-z_]+(\.\w+)*:\w+")
REGISTRY = {("vision_rl.tasks", "vqa_agent"), ("vision_rl.tasks", "grounding_agent")}
"""The only references upwards: the names of the built-in tasks, which `tasks.get_task` imports when they are asked for."""
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
    """The project's modules by dotted name, the commands at the top and the folders beside the package included."""
    paths = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    found = {}
    for path in sorted(paths):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a module imports when it runs, wherever in it; of `from a import b` both `a` and `a.b`.

    So does what it names as text: "module:attribute", or the module that it starts, after sys.executable and "-m".
    """
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
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and TEXT_NAME.fullmatch(node.value):
            yield node.value.split(":")[0]
        elif isinstance(node, ast.List | ast.Tuple) and "sys.executable, '-m', '" in ast.unparse(node):
            yield ast.unparse(node).split("sys.executable, '-m', '")[1].split("'")[0]


def patched(path: Path) -> list[str]:
    """What a module writes into modules that it imports, when it is imported itself."""
    found, level = [], list(ast.parse(path.read_text(encoding="utf-8")).body)
    known = {alias.asname or alias.name.split(".")[0] for node in level for alias in getattr(node, "names", ())}
    while level:
        node = level.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            level += [inner for inner in ast.iter_child_nodes(node) if isinstance(inner, ast.stmt)]
        for target in getattr(node, "targets", ()):
            written = ast.unparse(target)
            if isinstance(target, ast.Attribute | ast.Subscript) and re.split(r"\W", written)[0] in known:
                found.append(written)
    return found


def is_command(path: Path) -> bool:
    return path.name == "__main__.py" or "if __name__ ==" in path.read_text(encoding="utf-8")


def room(name: str) -> str:
    """Of a dotted name of ours: the folder of the package, or what stands beside it; "" for the package itself."""
    first, *rest = name.split(".")
    return first if first != PACKAGE else rest[0] if rest else ""


def floors(graph: nx.DiGraph) -> list[set[str]]:
    """The rooms in layers, ground first: each imports from floors below it alone."""
    return list(nx.topological_generations(graph.reverse()))


def rooms(commands: bool = False) -> nx.DiGraph:
    """An edge (a, b) where a module of room a imports one of room b.

    commands: with a node of its own for each module that is run; without, the package's rooms alone.
    """
    known = modules()
    graph = nx.DiGraph()

    arrows = {
        (name, target)
        for name, path in known.items()
        for target in imported(path)
        if target in known and room(name) and room(target) and (name, target) not in REGISTRY
    }
    # `vision-rl`, which starts every other command, makes none of them a part of the package.
    parts = {
        target for name, target in arrows if name.startswith(PACKAGE) and name not in (target, f"{PACKAGE}.__main__")
    }
    alone = {name for name, path in known.items() if is_command(path)} - parts

    def node(name: str) -> str:
        return name if name in alone and name.startswith(PACKAGE) else room(name)

    inside = {name for name in known if room(name) and (commands or (name.startswith(PACKAGE) and name not in alone))}
    graph.add_nodes_from(map(node, inside))
    graph.add_edges_from((node(a), node(b)) for a, b in arrows if {a, b} <= inside and node(a) != node(b))
    return graph


def users_of(framework: str) -> set[str]:
    """The package's rooms in which a module imports a framework, commands included."""
    ours = {name: path for name, path in modules().items() if name.startswith(PACKAGE)}
    return {room(name) for name, path in ours.items() if framework in {one.split(".")[0] for one in imported(path)}}


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
    print(f"reading the imports of {len(modules())} modules", flush=True)
    PAGE.write_text(page(), encoding="utf-8")
