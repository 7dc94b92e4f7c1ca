"""Which functions and classes of `vision_rl` the commands reach: what only tests or benchmarks call is no part of the product.

    python -m tests.reached          # prints those that nothing reaches

Read, not run. A name counts where it is read, where it is imported, and where it stands as text ("module:name"). Methods
are looked up by name alone, so one that bears the name of another may be missed; none is reported wrongly, except where
upstream calls it: dunder methods, and methods of a class with a base of upstream's, count as reached with their class.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.imports import PACKAGE, REGISTRY, ROOT, modules

COMMANDS = ("baselines", "examples", "scripts")
TEXTS = ("pyproject.toml", "Makefile", "download_data.sh", f"{PACKAGE}/configs/**/*.yaml", f"{PACKAGE}/**/*.html")
"""Files that name modules, functions and fields as text, beside the code."""
DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


UPSTREAM = {f"{PACKAGE}.training.rollout_manager.RolloutManager.generate_sequences"}
"""What verl calls without a base class that says so."""


def assigned(node: ast.Assign | ast.AnnAssign) -> list[str]:
    """The module's names that a statement binds; none where it writes into another object."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [inner for target in targets for inner in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [inner.id for inner in flat if isinstance(inner, ast.Name)]


@dataclass
class Part:
    """A function, class, method or constant, with what its body reads: whole names, and attributes of unknown owners."""

    name: str
    names: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    owner: Part | None = None
    foreign: bool = False
    """Whether upstream may call it: a dunder method, a method under a base of upstream's, or behind a decorator's register."""


class Scan:
    """All parts of the package, and what the commands read."""

    def __init__(self) -> None:
        self.known = modules()
        self.parts: list[Part] = []
        self.roots = Part("")
        self.imports = {module: names for module, names, _ in self._bodies()}
        self.mixed = self._mixed()
        classes = {
            f"{m}.{node.name}" for m, _, body in self._bodies() for node in body if isinstance(node, ast.ClassDef)
        }
        for module, imports, body in self._bodies():
            inside = module.startswith(PACKAGE)
            if not inside and module.split(".")[0] not in COMMANDS and "." in module:
                continue
            for node in body:
                if not inside:
                    self._read(node, module, imports, self.roots)
                elif isinstance(node, DEFINITION):
                    self._define(node, module, imports, classes)
                elif isinstance(node, ast.Assign | ast.AnnAssign) and (names := assigned(node)):
                    for name in names:
                        self.parts.append(Part(f"{module}.{name}"))
                        self._read(node.value, module, imports, self.parts[-1])
                elif not isinstance(node, ast.Import | ast.ImportFrom):
                    self._read(node, module, imports, self.roots)
        for pattern in TEXTS:
            for path in ROOT.glob(pattern):
                self.roots.attributes |= set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
        self.roots.names |= {f"{path}.TASK" for _, path in REGISTRY}

    def _bodies(self) -> Iterator[tuple[str, dict[str, str], list[ast.stmt]]]:
        """(module, local name -> whole name of what is imported anywhere in it, its statements)."""
        for module, path in self.known.items():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            imports: dict[str, str] = {}
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module:
                    imports |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
                elif isinstance(node, ast.Import):
                    imports |= {a.asname: a.name for a in node.names if a.asname}
            yield module, imports, tree.body

    def _mixed(self) -> set[str]:
        """Classes that stand beside one of upstream's as a base: their methods take the place of its."""
        return {
            self._whole(ast.unparse(base), module, imports)
            for module, imports, body in self._bodies()
            for node in body
            if isinstance(node, ast.ClassDef) and len(node.bases) > 1
            for base in node.bases
        }

    def _define(self, node: ast.stmt, module: str, imports: dict[str, str], classes: set[str]) -> None:
        assert isinstance(node, DEFINITION)
        part = Part(f"{module}.{node.name}", foreign=any("register" in ast.unparse(one) for one in node.decorator_list))
        self.parts.append(part)
        if not isinstance(node, ast.ClassDef):
            self._read(node, module, imports, part)
            return
        bases = [ast.unparse(base).split("[")[0] for base in node.bases]
        upstream = part.name in self.mixed or any(self._whole(base, module, imports) not in classes for base in bases)
        for inner in [*node.bases, *node.keywords, *node.decorator_list, *node.body]:
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                method = Part(f"{part.name}.{inner.name}", owner=part)
                method.foreign = (
                    upstream or inner.name.startswith("__") or f"super().{inner.name}(" in ast.unparse(inner)
                )
                self._read(inner, module, imports, method)
                self.parts.append(method)
            else:
                self._read(inner, module, imports, part)

    def _read(self, node: ast.AST | None, module: str, imports: dict[str, str], part: Part) -> None:
        """Add what the node reads to the part, its docstrings left out."""
        for inner in ast.walk(node) if node is not None else ():
            if isinstance(inner, ast.Name):
                part.names.add(self._whole(inner.id, module, imports))
            elif isinstance(inner, ast.alias):  # imported where it is read
                part.attributes.add(inner.name.split(".")[-1])
            elif isinstance(inner, ast.keyword) and inner.arg:
                part.attributes.add(inner.arg)
            elif isinstance(inner, ast.Attribute):
                part.attributes.add(inner.attr)
                part.names.add(self._whole(ast.unparse(inner), module, imports))
            elif (
                isinstance(inner, ast.Constant)
                and isinstance(inner.value, str)
                and re.fullmatch(r"[\w.:]+", inner.value)
            ):
                part.names.add(inner.value.replace(":", "."))
                part.attributes |= set(re.split(r"[.:]", inner.value))

    def _whole(self, name: str, module: str, imports: dict[str, str]) -> str:
        """The whole name of what a module calls `name`, followed through the modules that only hand it on."""
        first, *rest = name.split(".")
        whole = ".".join([imports.get(first, f"{module}.{first}"), *rest])
        for _ in range(5):
            home, _, last = whole.rpartition(".")
            if last not in self.imports.get(home, {}) or self.imports[home][last] == whole:
                break
            whole = self.imports[home][last]
        return whole

    def unreached(self) -> list[str]:
        """The names of the parts that nothing reaches from the commands, without those inside another such part."""
        names, attributes, done = set(self.roots.names), set(self.roots.attributes), set()
        while True:
            new = [
                part
                for part in self.parts
                if part.name not in done
                and (part.owner is None or part.owner.name in done)
                and self._is_reached(part, names, attributes)
            ]
            if not new:
                break
            done |= {part.name for part in new}
            names = names.union(*(part.names for part in new))
            attributes = attributes.union(*(part.attributes for part in new))
        return sorted(p.name for p in self.parts if p.name not in done and (p.owner is None or p.owner.name in done))

    def _is_reached(self, part: Part, names: set[str], attributes: set[str]) -> bool:
        home, _, last = part.name.rpartition(".")
        if part.foreign or part.name in names or part.name in UPSTREAM or home in names & set(self.known):
            return True
        return last.startswith("__") or (part.owner is not None and last in attributes)


def unreached() -> list[str]:
    """See `Scan.unreached`."""
    return Scan().unreached()


if __name__ == "__main__":
    print("\n".join(unreached()))
