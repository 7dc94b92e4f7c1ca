"""Look at all pages and write environments.md: `python -m examples.miniwob.table [PAGE ...]`, some minutes.

The environments are those that the package registers, and below them the pages that it holds besides. Each page is begun
with three seeds: twice in the same browser, with clicks and keys in between, and once more after it was loaded anew. What it
asks for is read from its elements and its source; the oracle tries every element, and every pair.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import miniwob  # noqa: F401  # it registers its environments

from examples.miniwob import task
from examples.miniwob.browser import BrowserError
from examples.miniwob.task import MiniWoB, pages
from vision_rl.answers.actions import Action

SEEDS = (1, 2, 3)
DIRT = [
    Action("click", (0.5, 0.5)),
    Action("type", text="x"),
    Action("drag", (0.3, 0.3), (0.6, 0.6)),
    Action("scroll", (0.5, 0.5), amount=1.0),
    Action("hover", (0.5, 0.35)),
]
NEEDS = """
(() => {
  const frame = document.querySelector('#wrap')?.contentDocument;  // flights
  const area = frame?.body || document.querySelector('#area') || document.body;
  const source = [...(frame || document).scripts].map(s => s.textContent).join('');
  const found = ['click'];
  if (area.querySelector('input[type=text], input[type=password], input:not([type]), textarea, [contenteditable]'))
    found.push('type');
  if (area.querySelector('.ui-draggable, .ui-sortable, .ui-slider, .ui-resizable') ||
      /behavior\\.drag|draggable\\(|sortable\\(|getSelection/.test(source)) found.push('drag');
  if (/mousemove/.test(source)) found.push(/mousedown/.test(source) ? 'drag' : 'hover');
  if (/copy|paste/i.test(document.title)) found.push('press');
  const far = frame && frame.documentElement.scrollHeight > frame.defaultView.innerHeight;
  if (far || [...area.querySelectorAll('*')].some(e => e.scrollHeight > e.clientHeight + 4 &&
      /auto|scroll/.test(getComputedStyle(e).overflowY))) found.push('scroll');
  return found;
})()
"""


def looked(page: MiniWoB, env: str, seed: int) -> bytes:
    return page.reset(seed=seed, options={"env": env}).pictures[0].tobytes()


def scan(page: MiniWoB, env: str) -> dict[str, Any]:
    """What was seen of one page. repeats: "reset", "reload" or "no": what it takes to see the same again."""
    found: dict[str, Any] = {"repeats": "reset", "oracle": 0, "clicks": 0, "needs": []}
    for seed in SEEDS:
        page.close_page()
        first = looked(page, env, seed)
        found["needs"] = sorted({*found["needs"], *page.browser().evaluate(NEEDS)})
        for action in DIRT:
            page.step(action)
        again = looked(page, env, seed)
        page.close_page()
        if looked(page, env, seed) != first:
            found["repeats"] = "no"
        elif again != first and found["repeats"] == "reset":
            found["repeats"] = "reload"
        actions = page.oracle(seed=seed, options={"env": env}) or []
        page.reset(seed=seed, options={"env": env})
        solved = [page.step(action) for action in actions]
        if solved and solved[-1].reward > 0:
            found["oracle"] += 1
            found["clicks"] = max(found["clicks"], len(actions))
    return found


def table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| page | same for the same seed | asks for | the oracle solves |", "|---|---|---|---|"]
    for name, one in results.items():
        solved = f"{one['oracle']} of {len(SEEDS)}" + (f", {one['clicks']} clicks" if one["clicks"] > 1 else "")
        lines.append(f"| {name} | {one['repeats']} | {', '.join(one['needs'])} | {solved if one['oracle'] else '-'} |")
    return lines


def page_of(results: Mapping[str, Mapping[str, Any]], registered: set[str]) -> str:
    """environments.md."""
    ours = {name: one for name, one in results.items() if name in registered}
    counts = {kind: sum(one["repeats"] == kind for one in ours.values()) for kind in ("reset", "reload", "no")}
    solved = sum(one["oracle"] == len(SEEDS) for one in ours.values())
    lines = [
        "# The environments of MiniWoB++ 1.1.0",
        "",
        (__doc__ or "").partition("\n\n")[2].strip(),
        "",
        f"{len(ours)} environments: {counts['reset']} are the same after a reset, {counts['reload']} after a reload, "
        f"{counts['no']} are not the same; the oracle solves {solved} with all seeds.",
        "",
        *table(ours),
        "",
        "Pages that the package does not register:",
        "",
        *table({name: one for name, one in results.items() if name not in registered}),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    known = [name.removeprefix("miniwob/").rpartition("-v")[0] for name in gymnasium.registry if "miniwob/" in name]
    names = sys.argv[1:] or sorted({*known, *(path.stem for path in (pages() / "miniwob").glob("*.html"))})
    task.RELOADED = re.compile("(?!)")  # nothing is loaded anew unless it is asked for
    page, results = MiniWoB(), {}
    for name in names:
        try:
            results[name] = scan(page, name)
        except BrowserError as error:
            results[name] = {"repeats": "no", "oracle": 0, "clicks": 0, "needs": [f"fails: {error}"[:80]]}
            page.close()
        print(name, json.dumps(results[name]), flush=True)
    page.close()
    if not sys.argv[1:]:
        Path(__file__).with_name("environments.md").write_text(page_of(results, set(known)), encoding="utf-8")


if __name__ == "__main__":
    main()
