"""What the troubleshooting tables and the alarms advise exists: settings, variants, presets, files, messages of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import collapse_page, failures
from vision_rl.config.resolve import presets, resolve, variants
from vision_rl.run.collapse import REMEDIES

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ADVICE = TEXT + "\n".join(cure for each in REMEDIES.values() for cure in each.cures)
ROOTS = ("actor_rollout_ref.", "agent.", "app.", "data.", "trainer.", "algorithm.", "ray_kwargs.")
# The settings of older guides, which the left column of that table quotes.
FOREIGN = TEXT.split("## Settings of older guides")[1].split("\n## ")[0]


def advised_settings() -> list[str]:
    quoted = re.findall(r"`\+?([a-z_]+\.[a-zA-Z0-9_.]+)(?:=[^`]*)?`", TEXT)
    bare = re.findall(r"\b((?:actor_rollout_ref|agent|app)\.[a-z_.]+[a-z])", ADVICE)
    left = {
        name
        for row in FOREIGN.splitlines()
        for name in re.findall(r"`\+?([a-z_.]+)", row.split("|")[1] if "|" in row else "")
    }
    found = {name for name in [*quoted, *bare] if name.startswith(ROOTS)}
    return sorted(found - left)


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every setting of the composed tree, sections included."""
    names: set[str] = set()

    def walk(prefix: str, value: object) -> None:
        names.add(prefix)
        if isinstance(value, dict):
            for key, part in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), part)

    for preset in ("gpu_24gb", "cpu"):
        walk("", resolve(preset, task="grounding", model="Qwen/Qwen2.5-VL-3B-Instruct", media_root="/").tree())
    return names


def test_every_setting_that_is_advised_exists(known: set[str]) -> None:
    names = advised_settings()
    assert len(names) > 30
    assert [name for name in names if name not in known] == []


def test_every_variant_and_preset_that_is_advised_exists() -> None:
    named = set(re.findall(r"--variant ([a-z_]+)", ADVICE))
    assert len(named) >= 5 and named <= set(variants())
    assert set(re.findall(r"--preset ([a-z_0-9]+)", ADVICE)) <= set(presets())


def test_every_flag_that_is_advised_exists() -> None:
    sources = "".join(path.read_text() for path in [*ROOT.glob("*.py"), *(ROOT / "vision_rl").rglob("*.py")])
    flags = set(re.findall(r"`[^`]*?(--[a-z][a-z_-]+)", TEXT)) - {"--shm-size", "--index-url", "--nproc_per_node"}
    assert [flag for flag in sorted(flags) if f'"{flag}"' not in sources] == []


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / "docs" / link).exists()


def test_every_alarm_is_in_the_table() -> None:
    section = TEXT.split("the collapse watch\n")[1].split("\n## ")[0]
    assert [name for name in REMEDIES if name not in section] == []


def test_the_reasons_of_lost_rollouts_are_those_of_the_code() -> None:
    """tests/test_rollout_manager.py provokes each of them."""
    assert failures.page() == TEXT, "run `python -m tests.failures`"
    assert all(one.happened and one.cause and one.cure for kind in failures.COLUMNS for one in kind)
    assert all(f"| `{one.value}` |" in TEXT for kind in failures.COLUMNS for one in kind)


def test_the_table_of_alarms_is_the_runs_own_advice() -> None:
    assert collapse_page.page() == TEXT, "run `python -m tests.collapse_page`"


def test_the_presets_caches_are_as_the_advice_says() -> None:
    """It once advised to switch them off "as the presets do", which have them on."""
    tree = resolve("gpu_24gb", task="vqa", model="Qwen/Qwen2.5-VL-3B-Instruct").verl["actor_rollout_ref"]["rollout"]
    assert tree["enable_prefix_caching"] is True
    advice = " ".join(REMEDIES["actor and rollout drift"].cures)
    assert "where all three stay on" in advice and " off" not in advice
