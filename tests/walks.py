"""Files that a reader opens to follow five questions through the code, and lines by room, at a revision and today.

python -m tests.walks [REVISION]          # prints the tables of CONTRIBUTING.md
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

from tests.imports import FOLDERS, ROOT

BEFORE = "a1438ab"
"""The last commit before the rooms were moved."""
V = "vision_rl"
_FINISHED = (
    f"{V}/rollout/runner.py {V}/rollout/trace.py {V}/training/rollouts.py {V}/training/samples.py {V}/training/rows.py"
)
_AGENT = f"vqa_agent.py {V}/agent/prompts.py {V}/rewards/vqa.py {V}/evaluation/metrics.py {V}/evaluation/summary.py"
_CONFIG = f"{V}/config/resolve.py {V}/config/known_keys.py {V}/config/refused_keys.py {V}/config/derived.py {V}/config/checks.py"
WALKS = {
    "a row of data, from parquet to gradient": (
        f"{V}/data/schema.py {V}/training/launch.py {V}/training/rollout_manager.py {V}/rollout/store.py {V}/tasks.py "
        f"vqa_agent.py {V}/rollout/model_calls.py {_FINISHED} {V}/models/pixels.py {V}/backends/engine.py",
        f"{V}/data/schema.py {V}/training/prepare.py {V}/training/rollout_manager.py {V}/rollout/store.py vqa_agent.py "
        f"{V}/rollout/model_calls.py {_FINISHED} {V}/models/pixels.py {V}/actor/engine.py",
    ),
    "a reward, from the agent to the advantage": (
        f"vqa_agent.py {V}/rewards/vqa.py {V}/rewards/terms.py {V}/plugins.py {V}/training/launch.py {_FINISHED} "
        f"{V}/training/advantages.py",
        f"vqa_agent.py {V}/rewards/vqa.py {V}/rewards/terms.py {V}/types.py {_FINISHED} {V}/training/advantages.py",
    ),
    "`key=value`, from the command line to verl": (
        f"train_agent.py {_CONFIG} {V}/training/task_runner.py",
        f"train_agent.py {V}/training/prepare.py {_CONFIG} {V}/training/task_runner.py",
    ),
    "`@agl.rollout` and `agl.Trainer`": (
        f"vqa_agent.py {V}/tasks.py {V}/training/launch.py train_agent.py",
        "vqa_agent.py train_agent.py",
    ),
    "everything that makes the task vqa": (f"{V}/tasks.py {_AGENT} {V}/tiny/tasks.py", f"{_AGENT} {V}/tiny/tasks.py"),
}
"""Question -> the files in the order in which a reader meets them: at `BEFORE`, and today."""


def lines_by_room(revision: str) -> Counter[str]:
    """Lines of Python by folder of the package, for the package as a whole, and by folder or file beside it."""
    git = ["git", "-C", str(ROOT)]
    names = subprocess.run([*git, "ls-tree", "-r", "--name-only", revision], capture_output=True, text=True, check=True)
    found: Counter[str] = Counter()
    for name in names.stdout.split():
        first, *rest = name.split("/")
        if name.endswith(".py") and (not rest or first in (*FOLDERS, "tests")):
            content = subprocess.run([*git, "show", f"{revision}:{name}"], capture_output=True, check=True).stdout
            count = content.count(b"\n")
            found["/".join([first, *rest[:1]]) if first == V else first] += count
            found[f"**{V}**"] += count * (first == V)
    return found


def main() -> None:
    """Print both tables."""
    before, now = lines_by_room(revision := (sys.argv[1:] or [BEFORE])[0]), lines_by_room("HEAD")
    print(f"| question | files at {revision} | files today |\n|---|---|---|")
    for question, (old, new) in WALKS.items():
        print(f"| {question} | {len(old.split())} | {len(new.split())} |")
    print(f"\n| room | lines at {revision} | lines today |\n|---|---|---|")
    for room in sorted({*before, *now}):
        print(f"| {room} | {before[room] or ''} | {now[room] or ''} |")


if __name__ == "__main__":
    main()
