"""The commands of README.md and docs/*.md, taken from the pages and run in a terminal: behind docs/commands.sh.

They run in a folder that has the checkout's files and the data that the pages speak of, made here; what they write stays there.
A command that needs a GPU, the network, an account or a quarter of an hour is listed with that reason.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SILENT_SECONDS = 5.0
LONGEST_SECONDS = 480.0
NOT_RUN = (
    (
        r"^make |^python3\.12 -m venv|^(uv )?pip install",
        "installs or runs for many minutes; CI and tests/test_requirements.py",
    ),
    (r"^bash download_data.sh (?!.*--dry-run)", "fetches gigabytes"),
    (
        r"--preset gpu_|--doctor --model Qwen|--rollout-engine sglang|gpu_presets",
        "needs a GPU, SGLang or a model of the hub",
    ),
    (r"TRAINER|--store http|--external-store|--role ", "needs a trainer elsewhere; tests/test_e2e_workers.py"),
    (
        r"convert|vindr",
        "needs the files of its set; tests/test_data_sets.py and tests/test_radiology_e2e.py run them all",
    ),
    (r"arc_vision|data/vqav2_", "needs the files of its set"),
    (
        r"zoom|miniwob|scripts\.tiny|^python -m pytest|tests\.",
        "trains a model of its own, or tests; tests/test_example_*.py",
    ),
    (r"benchmarks/", "a benchmark of minutes to hours; docs/benchmarks.md has its figures"),
    (r"^python (-X|-c|-m compileall)|--write", "is none of the product's commands, or writes into the checkout"),
    (
        r"val_before_train|papo|training_steps=6|=bfloat16|--max-steps 20",
        "a figure of docs/benchmarks.md or docs/scale.md",
    ),
    (
        r"py (stats|verify|show)$|export --dtype|--file F$|PATH$|FOLDER|runs/demo-",
        "is named in a text without its arguments",
    ),
    (r"\.\.\.|--endpoint|gpt-4o|MODEL|my_reward|OPENAI_API_KEY", "stands for something of the reader's own"),
)
"""Pattern -> why a command that fits is not run here."""
FILLED = (
    (r"\bRUN_DIR\b", "runs/vqa"),
    (r"-o DIR\b", "-o exported"),
    (
        r"^(python train_agent\.py(?! init)(?!.*(--dry-run|--plan|--doctor|--list|--help)).*)$",
        r"\1 --max-steps 2 --overwrite",
    ),
    (r"^(python -m vision_rl\.serve .*)$", r"\1 --port 8765"),
)
"""Pattern -> what it becomes: placeholders, and two steps of training in place of all."""
ENDED = ((r"--llm-proxy|vision_rl\.serve |--serve\b", "OPENAI_BASE_URL=|http://127"),)
"""Commands that run until Ctrl-C, which they get once they have printed the second pattern."""
TABLE = "{page:22} {load:>5} {first:>7} {end:>7} {gap:>7}  {command}"


@dataclass(frozen=True)
class Command:
    """A line of a page as it is run; reason: why it is not."""

    page: str
    text: str
    reason: str = ""


@dataclass(frozen=True)
class Timed:
    """Seconds until the first output, until the end, and of the longest silence; the exit code, and what was printed.

    load: processes that wanted a core, for each core there is; above 1 each second of the machine's own is that many longer.
    """

    first: float
    end: float
    gap: float
    code: int
    shown: str
    load: float = 1.0


def commands() -> list[Command]:
    """Every command of the pages once: those of shell blocks, and those in the text that stand in backticks as a whole."""
    found: dict[str, Command] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
        lines += re.findall(r"`((?:python (?:-m )?|bash |vision-rl )[^`\n]+)`", text)
        for line in lines:
            command = re.sub(r"\s+#.*$", "", line).strip()
            if command and not command.startswith(("#", "export ", ". ", "eval ")) and command not in found:
                reason = next((why for pattern, why in NOT_RUN if re.search(pattern, command)), "")
                found[command] = Command(page.name, command, reason)
    return list(found.values())


def filled(text: str) -> str:
    """The command with real names in place of placeholders."""
    for pattern, value in FILLED:
        text = re.sub(pattern, value, text)
    return text


def prepare(folder: Path) -> None:
    """The checkout's files by links, and the data that the pages speak of."""
    from vision_rl.data.schema import read_rows, write_rows
    from vision_rl.tiny import write_tasks

    for path in ROOT.iterdir():
        if path.name not in ("data", "runs") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    (folder / "data").mkdir()
    for names in (
        ("train", "val"),
        ("rad", "own"),
        ("slake", "x"),
        ("slake_train", "slake_val"),
        ("vqa_rad_train", "vqa_rad_test"),
    ):
        made = write_tasks(folder / "data" / names[0], "vqa", train=40, val=8, test=1)
        for name, split in zip(names, ("train", "val"), strict=True):
            for path in (folder / f"{name}.parquet", folder / "data" / f"{name}.parquet"):
                write_rows(path, read_rows(made[split]))  # with whole paths of the pictures


def timed(command: str, folder: Path, *, until: str = "") -> Timed:
    """Run a command in a terminal of its own; `until`: what it prints before it gets Ctrl-C."""
    master, slave = pty.openpty()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}
    began = last = time.monotonic()
    running = subprocess.Popen(
        [
            "bash",
            "-c",
            f"exec {command}" if re.fullmatch(r"[^;&|]+", command) and "=" not in command.split()[0] else command,
        ],
        cwd=folder,
        env=variables,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    first, gap, shown, asked = -1.0, 0.0, "", False
    while True:
        ready, _, _ = select.select([master], [], [], 0.5)
        now = time.monotonic()
        try:
            chunk = os.read(master, 65536) if ready else b""
        except OSError:  # the other end is closed
            break
        if chunk:
            first, gap, last = (now - began if first < 0 else first), max(gap, now - last), now
            shown += chunk.decode(errors="replace")
        if until and not asked and re.search(until, shown):
            os.kill(running.pid, signal.SIGINT)
            asked = True
        if now - began > LONGEST_SECONDS:
            os.killpg(running.pid, signal.SIGTERM)
            break
        if not ready and running.poll() is not None:
            break
    code = running.wait(60)
    end = time.monotonic()
    os.close(master)
    gap = max(gap, end - last)
    code = 0 if asked and code in (130, -2) else code
    load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    return Timed(first if first >= 0 else end - began, end - began, gap, code, shown, load)


def main() -> int:
    """Run them, print the table; 1 if one has failed or was silent."""
    parser = argparse.ArgumentParser(prog="docs/commands.sh", description=__doc__)
    parser.add_argument("words", nargs="*", help="only the commands that hold one of these")
    parser.add_argument("--list", action="store_true", help="print the commands, and why some are not run")
    args = parser.parse_args()
    chosen = [one for one in commands() if not args.words or any(word in one.text for word in args.words)]
    bad = 0
    print(TABLE.format(page="page", load="load", first="first s", end="end s", gap="silent", command="command"))
    with tempfile.TemporaryDirectory(prefix="commands-") as name:
        folder = Path(name)
        if not args.list:
            prepare(folder)
        for one in chosen:
            if one.reason or args.list:
                row = TABLE.format(page=one.page, load="-", first="-", end="-", gap="-", command=one.text)
                print(row + f"  ({one.reason})" * bool(one.reason), flush=True)
                continue
            until = next((marker for pattern, marker in ENDED if re.search(pattern, one.text)), "")
            result = timed(filled(one.text), folder, until=until)
            figures = {key: f"{getattr(result, key):.1f}" for key in ("load", "first", "end", "gap")}
            print(TABLE.format(page=one.page, command=filled(one.text), **figures), flush=True)
            if result.code or result.gap > SILENT_SECONDS * max(1.0, result.load):
                bad += 1
                what = f"ended with exit code {result.code}" if result.code else f"was silent for {result.gap:.1f} s"
                print(f"FAILED: {shlex.quote(one.text)} {what}:\n{result.shown[-1500:]}", flush=True)
    print(f"{len(chosen)} commands, {sum(bool(one.reason) for one in chosen)} not run, {bad} failed")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
