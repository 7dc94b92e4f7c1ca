"""The commands of README.md and docs/*.md, taken from the pages and run in a terminal: behind docs/commands.sh.

They run page by page in a copy of the checkout, with the data that the pages speak of (`tests.page_data`). A command that needs a
GPU, gigabytes or many minutes is listed with that reason. docs/commands-run.md is what `--write` printed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.page_data import write_page_data

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "docs" / "commands-run.md"
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page != MEASURED)]
SILENT_SECONDS = 5.0
LONGEST_SECONDS = 480.0
LEFT_OUT = (".git", ".venv*", "build", "data", "runs", ".*_cache", ".hypothesis", "*.egg-info")
"""What is not copied of the checkout."""
NOT_RUN = (
    (r"^make |-m venv|^(uv )?pip install", "installs or trains for many minutes; CI runs it"),
    (r"^bash download_data.sh (?!.*--dry-run)", "fetches gigabytes"),
    (r"sglang|gpu_presets|--preset gpu_.*--data-path", "needs a GPU or SGLang"),
    (r"demo-browser|scripts\.tiny_models(\.browser| --output)", "trains a model of its own, for many minutes"),
    (
        r"benchmarks/(?!parity.py --write-docs)",
        "a benchmark of minutes to hours; docs/benchmarks.md has its figures",
    ),
    (
        r"--max-steps (14|20)|training_steps=6",
        "the README's command with more steps, for a figure of docs/benchmarks.md",
    ),
    (r"--variant tools\b", "needs a model with more positions than the tiny one's 4,096"),
    (r"export\.internvl", "needs a model of the hub; tests/test_export_internvl.py"),
    (r"^python (-X|-c|-m compileall)", "is a command of Python, not of this project"),
)
"""Pattern -> why a command that fits is not run here."""
TINY = "vision_rl/tiny/checkpoint"
FILLED = (
    (r"\bRUN_DIR\b|DIR \[DIR \.\.\.\] \[--serve\]", lambda found: "runs/vqa" + " --serve" * ("--serve" in found[0])),
    (r"-o DIR\b", "-o exported"),
    (r"^OPENAI_BASE_URL=http://TRAINER\S+ OPENAI_API_KEY=\S+ (.*)", r"\1 --max-rollouts 4"),
    (r"--input DIR\b", "--input data/vqa-rad"),
    (r"--model (Qwen/\S+|PATH)", f"--model {TINY}"),
    (r"--count 2000", "--count 8"),
    (r"--file F$", "--file val.parquet"),
    (r" \.\.\.$", ""),
    (r"--dtype float32$", "runs/vqa -o exported-float32 --dtype float32"),
    (r"(--max-steps|total_training_steps=) ?\d+", ""),
    (
        r"^((?:python train_agent\.py|vision-rl train)(?! init)(?!.*(--dry-run|--plan|--doctor|--list|--help)).*)$",
        r"\1 --max-steps 1 --overwrite",
    ),
    (r"^vision-rl convert$", "vision-rl convert --help"),
    (r"^(vision-rl init) my-task", r"\1 my-other-task"),
    (r"^((python -m vision_rl\.|vision-rl )serve .*)$", r"\1 --port 8765"),
    (r"^(bash docs/commands\.sh)$", r"\1 --list"),
)
"""Pattern -> what it becomes: real names for placeholders, one step of training in place of all."""
UNTIL = r"OPENAI_BASE_URL=(http://\S+)( OPENAI_API_KEY=(\S+))?|follows .*; Ctrl-C"
"""What a command prints that serves until Ctrl-C, once it does."""
SERVES = r"--llm-proxy|(vision_rl\.|vision-rl )serve |--serve\b"
BESIDE = (
    (r"api_baseline\.py --model tiny", "python -m vision_rl.serve --tiny --port 8766"),
    (
        r"http://TRAINER",
        "python train_agent.py --task vqa --llm-proxy --n-runners 1 --max-steps 1 --run-dir runs/workers",
    ),
)
"""Commands that ask another one, which is started first and ended after them."""
TABLE = "{page:18} {load:>5} {first:>7} {end:>7} {gap:>7}  {command}"


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
    quiet: the line before the longest silence.
    """

    first: float
    end: float
    gap: float
    code: int
    shown: str
    load: float = 1.0
    quiet: str = ""


def commands() -> list[Command]:
    """Every command of the pages once: those of shell blocks, and those in the text that stand in backticks as a whole.

    `python data_utils.py stats` in a text is the name of a command that stands elsewhere with its arguments.
    """
    found: dict[str, Command] = {}
    named: dict[str, Command] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        lines = [line for block in blocks for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()]
        texts = re.findall(r"`((?:python (?:-m )?|bash |vision-rl )[^`\n]+)`", text)
        for line, known in [(line, found) for line in lines] + [(line, named) for line in texts]:
            command = re.sub(r"\s+#.*$", "", line).strip()
            if command and not command.startswith(("#", "export ", ". ", "eval ")):
                reason = next((why for pattern, why in NOT_RUN if re.search(pattern, command)), "")
                known.setdefault(filled(command), Command(page.name, command, reason))
    for text, one in named.items():
        name_only = re.search(r" [a-z]+$", text) and any(other.startswith(f"{text} ") for other in {*found, *named})
        if not name_only:
            found.setdefault(text, one)
    order = [page.name for page in PAGES]
    return sorted(found.values(), key=lambda one: order.index(one.page))


def filled(text: str) -> str:
    """The command with real names in place of placeholders."""
    for pattern, value in FILLED:
        text = re.sub(pattern, value, text)
    return text.strip()


def start(command: str, folder: Path, terminal: int, **variables: str) -> subprocess.Popen[bytes]:
    """The command as a shell in `folder` runs it, with `terminal` as its input and output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(folder),
        "TERM": "xterm",
        "COLUMNS": "120",
        "PYTHON": sys.executable,
        **variables,
    }
    plain = re.fullmatch(r"[^;&|]+", command) and "=" not in command.split()[0]
    return subprocess.Popen(
        ["bash", "-c", f"exec {command}" if plain else command],
        cwd=folder,
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )


def timed(command: str, folder: Path, *, until: str = "", **variables: str) -> Timed:
    """Run a command in a terminal of its own; `until`: what it prints before it gets Ctrl-C."""
    master, slave = pty.openpty()
    began = last = time.monotonic()
    running = start(command, folder, slave, **variables)
    os.close(slave)
    first, gap, shown, quiet, asked = -1.0, 0.0, "", "", False
    while True:
        ready, _, _ = select.select([master], [], [], 0.5)
        now = time.monotonic()
        try:
            chunk = os.read(master, 65536) if ready else b""
        except OSError:  # the other end is closed
            break
        if chunk:
            first = now - began if first < 0 else first
            gap, quiet = max((gap, quiet), (now - last, last_line(shown)))
            last = now
            shown += chunk.decode(errors="replace")
        if until and not asked and re.search(until, shown):
            os.kill(running.pid, signal.SIGINT)
            asked = True
        if now - began > LONGEST_SECONDS:
            os.killpg(running.pid, signal.SIGTERM)
            break
        if not ready and running.poll() is not None:
            break
    code = running.wait(LONGEST_SECONDS)
    end = time.monotonic()
    os.close(master)
    gap, quiet = max((gap, quiet), (end - last, last_line(shown)))
    code = 0 if asked and code in (130, -2) else code
    return Timed(first if first >= 0 else end - began, end - began, gap, code, shown, load(), quiet)


def last_line(shown: str) -> str:
    """The last line of what a command has printed."""
    return (shown.split() and shown.strip().splitlines()[-1]) or "its start"


def load() -> float:
    """Processes that want a core, for each core there is."""
    return os.getloadavg()[0] / len(os.sched_getaffinity(0))


@contextlib.contextmanager
def beside(command: str, folder: Path) -> Iterator[dict[str, str]]:
    """Start what the command asks, if it asks another one, and end it after; the variables that name it."""
    asked = next((other for pattern, other in BESIDE if re.search(pattern, command)), "")
    if not asked:
        yield {}
        return
    log = folder / "beside.log"
    with log.open("wb") as output:
        running = start(asked, folder, output.fileno())
    try:
        end = time.monotonic() + LONGEST_SECONDS
        while not (found := re.search(UNTIL, log.read_text(errors="replace"))):
            if running.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{asked} does not serve:\n{log.read_text(errors='replace')[-1500:]}")
            time.sleep(0.2)
        yield {"OPENAI_BASE_URL": found[1], "OPENAI_API_KEY": found[3] or "none"}
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(LONGEST_SECONDS)


def run(one: Command, folder: Path) -> tuple[str, Timed]:
    """Run a command of a page, and what it asks beside it; the command as it was run, and its figures."""
    text = filled(one.text)
    with contextlib.ExitStack() as others:
        try:
            variables = others.enter_context(beside(one.text, folder))
        except RuntimeError as error:
            return text, Timed(0.0, 0.0, 0.0, 1, str(error))
        return text, timed(text, folder, until=UNTIL if re.search(SERVES, text) else "", **variables)


def page_of(lines: list[str], bad: int) -> str:
    """docs/commands-run.md."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        "# Commands as they ran\n\n"
        f"`bash docs/commands.sh --write` on {datetime.date.today()}, {len(os.sched_getaffinity(0))} cores "
        f"({platform.machine()}, {memory:.0f} GiB, no GPU), Python {platform.python_version()}; {bad} failed.\n"
        "*load*: processes that wanted a core, for each core. *first*: seconds until the first output. *end*: until the end.\n"
        "*silent*: the longest pause between two outputs. Training is one step. `--list` has the commands that are not run.\n\n"
        "| page | load | first | end | silent | command |\n|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def main() -> int:
    """Run them, print the table; 1 if one has failed or was silent."""
    parser = argparse.ArgumentParser(prog="docs/commands.sh", description=__doc__)
    parser.add_argument("words", nargs="*", help="only the commands that hold one of these")
    parser.add_argument("--list", action="store_true", help="print the commands, and why some are not run")
    parser.add_argument("--write", action="store_true", help="write docs/commands-run.md")
    args = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # in the background a shell has it ignored, also by what we start
    chosen = [one for one in commands() if not args.words or any(word in one.text for word in args.words)]
    bad, lines = 0, []
    print(TABLE.format(page="page", load="load", first="first s", end="end s", gap="silent", command="command"))
    with tempfile.TemporaryDirectory(prefix="commands-") as name:
        folder = Path(name) / "vision-rl"
        if not args.list:
            shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
            write_page_data(folder)
        for one in chosen:
            text, figures = one.text, dict.fromkeys(("load", "first", "end", "gap"), "-")
            if not one.reason and not args.list:
                text, result = run(one, folder)
                figures = {key: f"{getattr(result, key):.1f}" for key in figures}
                if result.code or result.gap > SILENT_SECONDS * max(1.0, result.load):
                    bad += 1
                    what = (
                        f"ended with exit code {result.code}"
                        if result.code
                        else f"was silent for {result.gap:.1f} s after {result.quiet!r}"
                    )
                    print(f"FAILED: {shlex.quote(one.text)} {what}:\n{result.shown[-1500:]}", flush=True)
            print(
                TABLE.format(page=one.page, command=text, **figures) + f"  ({one.reason})" * bool(one.reason),
                flush=True,
            )
            lines += [] if one.reason else [f"| {one.page} | {' | '.join(figures.values())} | `{text}` |"]
            if args.write:  # after each, for a run that is cut short
                MEASURED.write_text(page_of(lines, bad), encoding="utf-8")
    print(f"{len(chosen)} commands, {sum(bool(one.reason) for one in chosen)} not run, {bad} failed")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
