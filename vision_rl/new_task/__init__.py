"""`train_agent.py init NAME`: a folder with a task that works as it stands, to be changed line by line."""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_rl.data.schema import write_row_sets
from vision_rl.errors import Parser, UserError, cli_errors
from vision_rl.files import write_text
from vision_rl.new_task import template
from vision_rl.tasks import get_task, task_names

ROWS = {"train": 96, "val": 64}
"""Validation on 64 rows knows a share of a half to 0.06 (one standard error)."""
CONFIG = """# Settings of this task, over those of the preset: `--variant` names this file. --dry-run prints all there are.
data:
  train_batch_size: 16               # rows of a step
actor_rollout_ref:
  actor:
    ppo_mini_batch_size: 16
  rollout:
    n: 8                             # replies to each row, which are compared with each other
trainer:
  total_training_steps: 15
  test_freq: 5                       # steps from one validation to the next
agent:
  reward: exact
"""


def init(name: str, parent: Path | None = None) -> str:
    """Make the folder `name` with task file, settings and rows with pictures; returns what to do next, in words.

    Raises `UserError` for a name that no Python file can have, that a task has already, or whose folder is there.
    """
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", module):
        raise UserError(
            f"init {name}: give a name of small letters, digits and hyphens that begins with a letter, as my-task"
        )
    if module in task_names():
        raise UserError(f"init {name}: there is a task {module} already; give another name")
    folder = (parent or Path()) / name
    if folder.exists():
        raise UserError(f"init {name}: {folder} is there already; remove it, or give another name")
    source = Path(template.__file__).read_text(encoding="utf-8")
    file = folder / f"{module}.py"
    own = source.replace('name="starter"', f'name="{module}"').replace("FILE", str(file)).replace("FOLDER", str(folder))
    rows = _rows(folder, module)
    write_text(file, own)
    write_text(folder / "config.yaml", CONFIG)
    get_task(str(file))  # loads it: rows of a task that nobody knows are refused
    write_row_sets(rows)
    return render(folder, file)


def parser() -> Parser:
    """The command line."""
    parser = Parser("Make the folder of a new task that runs as it stands: a task file, settings, rows with pictures.")
    parser.prog = f"{parser.prog.removesuffix(' init')} init"
    parser.add_argument("name", metavar="NAME", help="small letters, digits and hyphens, as my-task")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """`init NAME`."""
    args = parser().parse_args(argv)
    with cli_errors():
        print(init(args.name))


def render(folder: Path, file: Path) -> str:
    """What was made, and the three commands."""
    train, val = folder / "train.parquet", folder / "val.parquet"
    commands = (
        ("python", "data_utils.py", "verify", "--task", file, "--file", train),
        (
            *("python", "train_agent.py", "--task", file, "--variant", folder / "config.yaml"),
            *("--data-path", train, "--val-data-path", val, "--run-dir", Path("runs") / folder.name),
        ),
        ("python", "-m", "vision_rl.report", Path("runs") / folder.name),
    )
    lines = [shlex.join(map(str, command)) for command in commands]
    return (
        f"{folder} has a task ({file.name}), its settings (config.yaml), {ROWS['train']} rows to train on and {ROWS['val']} "
        f"to validate. Now:\n  {lines[0]}\n  {lines[1]}\n"
        f"  {lines[2]}"
    )


def _rows(folder: Path, task: str) -> dict[Path, list[dict[str, Any]]]:
    """The rows of each file with their pictures, which are written; no picture comes twice."""
    rng, seen, found = random.Random(0), set[bytes](), dict[Path, list[dict[str, Any]]]()
    (folder / "images").mkdir(parents=True)
    for split, size in ROWS.items():
        rows = found[folder / f"{split}.parquet"] = []
        while len(rows) < size:
            picture, fields = template.draw(rng)
            if picture.tobytes() in seen:
                continue
            seen.add(picture.tobytes())
            path = folder / "images" / f"{split}-{len(rows)}.png"
            picture.save(path)
            rows.append({"id": path.stem, "task": task, "image_path": str(path.absolute()), **fields})
    return found
