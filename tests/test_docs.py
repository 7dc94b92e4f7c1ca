"""What the pages name exists: files, modules, links."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests import page_commands
from vision_rl.config.refused_keys import OBSOLETE
from vision_rl.run.collapse import REMEDIES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [
    *(path for folder in ("vision_rl", "tests", "benchmarks", "baselines", "examples") for path in (ROOT / folder).rglob("*.py")),
    *(ROOT / "vision_rl" / "configs").rglob("*.yaml"),
    *ROOT.glob("*.py"),
]  # fmt: skip
FOLDERS = ["tests", "benchmarks", "baselines", "examples", "requirements", "vision_rl"]
ROOMS = sorted(path.name for path in (ROOT / "vision_rl").iterdir() if (path / "__init__.py").exists())
UPSTREAM = ROOT / "docs" / "upstream.md"
"""Names files of verl and vLLM as well; of those it names of ours, the ones that begin with a folder are looked up."""


def named_files(text: str, pattern: str) -> list[str]:
    return sorted(set(re.findall(rf"(?<![\w/.-])((?:{pattern})/[\w/-]+\.(?:py|yaml|sh|txt|md))\b", text)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [name for name in named_files(text, "|".join(FOLDERS)) if not (ROOT / name).exists()]
    if page != UPSTREAM:  # `rollout/proxy.py` and the like
        short = set(re.findall(r"`([a-z_]+/[a-z_]+\.py)", text))
        missing += [name for name in sorted(short) if not any((ROOT / at / name).exists() for at in ("", "vision_rl"))]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_and_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m ((?:vision_rl|tests)[\w.]*)", text))
    assert [name for name in sorted(modules) if importlib.util.find_spec(name.rstrip(".")) is None] == []
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    assert [link for link in sorted(links - {""}) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_name_stands_within_a_word(page: Path) -> None:
    """A replacement by machine once wrote a file's name for every x of a page."""
    assert re.findall(r"[a-z]`[\w./]+\.py`", page.read_text(encoding="utf-8")) == []


def test_files_that_docstrings_and_comments_name_exist() -> None:
    missing = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        ours = [folder for folder in FOLDERS if folder != "examples"]  # EasyR1 and others have a folder of that name
        found = named_files(text, "|".join(ours))
        missing += [
            (path.name, name) for name in found if not any((ROOT / at / name).exists() for at in ("", "vision_rl"))
        ]
    assert not missing


def test_no_command_and_no_cure_sets_what_is_refused() -> None:
    """One of each named a key that verl 0.9 does not read."""
    cures = " ".join(cure for remedy in REMEDIES.values() for cure in remedy.cures)
    commands = " ".join(one.text for one in page_commands.commands())
    named = set(re.findall(r"\b(?:actor_rollout_ref|algorithm|data|trainer)\.[\w.]+\w", f"{cures} {commands}"))
    assert len(named) > 5 and not named & OBSOLETE.keys()
