"""Score a model on a data file with the agents, prompts and rewards of training. A killed run continues where it stopped.

    python evaluate_agent.py --tiny                                               # tiny model, synthetic VQA
    python evaluate_agent.py --data val.parquet --checkpoint runs/vqa/checkpoints/global_step_100
    python evaluate_agent.py --data screenspot_test.parquet --endpoint http://localhost:8000/v1 --model my-model

It writes rows.jsonl (one line per row), summary.json, summary.md and report.html. For VQA with question ids it also writes
submission.json, the official result file. A file with rows of several tasks gets one folder per task. The exit code is 1 if
rows have failed; the same command then asks for those rows only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_rl.errors import Parser, UserError, cli_errors  # first: it says what this Python lacks

# isort: split
from rich.console import Console

from vision_rl.platform.environment import run_environment
from vision_rl.platform.gpu import on_cpu
from vision_rl.settings import AgentSettings
from vision_rl.tasks import TASK_HELP, get_task
from vision_rl.waiting import waiting

if TYPE_CHECKING:
    from vision_rl.evaluation.session import Job

OUTPUT = Path("runs") / "evaluations"


def parser() -> argparse.ArgumentParser:
    """The command line; settings of the agent are `agent.key=value` overrides, as in training."""
    parser = Parser(__doc__)
    what = parser.add_argument_group("what to score")
    target = what.add_mutually_exclusive_group()
    target.add_argument(
        "--endpoint", help="OpenAI-compatible base URL of a server (with --model; default: OPENAI_BASE_URL)"
    )
    target.add_argument("--checkpoint", type=Path, help="model folder, global_step_N or run folder; vLLM serves it")
    target.add_argument("--tiny", action="store_true", help="the tiny model that ships with the package")
    what.add_argument("--model", help="model name at --endpoint")
    what.add_argument(
        "overrides",
        nargs="*",
        metavar="agent.key=value",
        help="settings of the agent, for example agent.answer_format=click",
    )
    add_data_arguments(parser)
    add_run_arguments(parser)
    serving = parser.add_argument_group("how --checkpoint and --tiny are served")
    serving.add_argument("--max-model-len", type=int, help="longest prompt and answer in tokens")
    return parser


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Which rows, and where the results go; the API baseline has the same."""
    data = parser.add_argument_group("on which rows")
    data.add_argument("--data", type=Path, help="parquet file (default: 128 synthetic test rows)")
    data.add_argument("--image-dir", type=Path, help="base of relative image paths (default: the file's folder)")
    data.add_argument("--task", help=f"{TASK_HELP} (default: each row's own; vqa without a file)")
    data.add_argument("--limit", type=int, help="score only the first rows; a later call with a higher limit continues")
    data.add_argument("--output", type=Path, help=f"folder for the results (default: a folder under {OUTPUT})")
    data.add_argument("--overwrite", action="store_true", help="delete the evaluation that --output holds")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """How the rows are asked; the API baseline has the same."""
    how = parser.add_argument_group("how")
    how.add_argument("--concurrency", type=int, default=16, help="rows that are asked at once (default: %(default)s)")
    how.add_argument(
        "--attempts", type=int, default=3, help="tries per row when server or network fail (default: %(default)s)"
    )
    how.add_argument(
        "--served-pixels", metavar="[MIN:]MAX", help="areas in pixels to which the server resizes pictures"
    )
    how.add_argument("--temperature", type=float, default=0.0, help="sampling temperature (default: %(default)s)")
    how.add_argument("--seed", type=int, help="sampling seed, if the server takes one")


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_intermixed_args(argv)  # overrides may stand between flags
    with cli_errors():
        sys.exit(run(args, Console(stderr=True)))


def run(args: argparse.Namespace, console: Console) -> int:
    """Evaluate; returns the exit code."""
    with waiting("reading settings, model and data", console):
        from vision_rl.evaluation.session import evaluate, resumable
        from vision_rl.evaluation.targets import served_checkpoint, warm_server

        jobs, folder, settings = planned(args)

    @contextlib.contextmanager
    def server() -> Iterator[tuple[str, str]]:
        if folder is None:
            yield args.endpoint, args.model
            return
        if warm := warm_server(folder):
            console.print(f"asking the server at {warm[0]}", highlight=False, markup=False)
            yield warm
            return
        cpu = on_cpu()
        os.environ.update(run_environment(cpu))
        serving = served_checkpoint(folder, settings, cpu=cpu, max_model_len=args.max_model_len)
        with contextlib.ExitStack() as ending:
            with waiting(f"vLLM loads {folder}", console):
                served = ending.enter_context(serving)
            yield served

    with resumable(console), contextlib.ExitStack() as stack:
        started = cache(lambda: stack.enter_context(server()))  # once, when a row is left to ask
        outcomes = [
            report_outcome(evaluate(job, lambda: contextlib.nullcontext(started()), console), job.output, console)
            for job in jobs
        ]
    return max(outcomes)


def planned(args: argparse.Namespace) -> tuple[list[Job], Path | None, AgentSettings]:
    """(a job for each task of the rows, the folder of the model to serve, the last task's settings)."""
    from vision_rl.config.resolve import overrides_for
    from vision_rl.evaluation.session import Job
    from vision_rl.evaluation.targets import agent_settings, model_folder, served_pixels

    if args.model is not None and not (args.tiny or args.checkpoint):
        args.endpoint = args.endpoint or os.environ.get("OPENAI_BASE_URL")
    if not (args.endpoint or args.tiny or args.checkpoint):
        raise UserError("name what to score: --tiny, --checkpoint, or --endpoint (or OPENAI_BASE_URL) with --model")
    if (args.endpoint is None) != (args.model is None):
        raise UserError("--endpoint and --model go together; --checkpoint and --tiny need no --model")
    if args.model == "":
        raise UserError("--model is empty; give the model's name at --endpoint")
    data, by_task = rows_of(args)
    folder = None if args.endpoint else model_folder(args.checkpoint)
    name = args.model or ("tiny" if args.tiny else os.path.relpath(folder or ""))
    sampling = sampling_of(args)
    jobs = []
    for task, rows in by_task.items():
        settings = agent_settings(
            task,
            overrides_for(task, list(by_task), [*served_pixels(args.served_pixels), *args.overrides]),
            cpu=on_cpu(),
            model_dir=folder,
            trained_as=args.checkpoint,
            transport="data" if args.endpoint else "file",
        )
        jobs.append(
            Job(
                rows=rows,
                identity=identity_of(task, name, args.endpoint or weights_of(folder), data, settings, sampling),
                output=output_of(args, task, list(by_task), data, name),
                prepare=partial(with_settings, settings),
                sampling=sampling,
                limits=limits_of(args),
                overwrite=args.overwrite,
            )
        )
    return jobs, folder, settings


def with_settings(settings: AgentSettings, row: dict[str, Any]) -> dict[str, Any]:
    """A row as its agent takes it."""
    return {**row, "settings": asdict(settings)}


def rows_of(args: argparse.Namespace) -> tuple[Path, dict[str, list[tuple[int, dict[str, Any]]]]]:
    """(file, numbered rows by task) that the command line asks for."""
    from vision_rl.evaluation.session import load_rows

    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit} leaves no rows; give 1 or more")
    data, named = args.data, get_task(args.task).name if args.task else None
    if data is None:
        from vision_rl.tiny import write_tasks

        task = named or "vqa"
        data = write_tasks(Path("data") / "synthetic" / task, task)["test"]
    return data, load_rows(data, named, args.limit, args.image_dir)


def weights_of(folder: Path | None) -> str:
    """What tells the weights in a folder from others that stood at the same path: their files' sizes and times."""
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")) if folder else []
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return "weights " + hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """Sampling parameters of every request."""
    return {"temperature": args.temperature, **({"seed": args.seed} if args.seed is not None else {})}


def limits_of(args: argparse.Namespace) -> Any:
    """The runner's limits; `UserError` for numbers below 1."""
    from vision_rl.evaluation.scorer import Limits

    for name in ("concurrency", "attempts"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} is too small; give 1 or more")
    return Limits(concurrency=args.concurrency, attempts=args.attempts)


def identity_of(
    task: str, model: str, served_by: str, data: Path, settings: AgentSettings, sampling: dict[str, Any]
) -> dict[str, Any]:
    """What must be equal for an evaluation to go on."""
    from vision_rl.evaluation.results import fingerprint

    source = get_task(task).source
    return {
        "task": task,
        **({"task_source": source} if source else {}),
        "model": model,
        "served_by": served_by,
        "data": str(data.absolute()),
        "data_sha256": fingerprint(data),
        "settings": asdict(settings),
        "sampling": sampling,
    }


def output_of(args: argparse.Namespace, task: str, tasks: Sequence[str], data: Path, model: str) -> Path:
    """--output, or runs/evaluations/<task>-<file>-<model>; a file with rows of several tasks has a folder for each."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{'-'.join(tasks)}-{data.stem}-{model}")
    whole: Path = args.output or OUTPUT / re.sub("-+", "-", name)
    return whole / task if len(tasks) > 1 else whole


def report_outcome(summary: dict[str, Any], output: Path, console: Console) -> int:
    """Print the figures to stdout and where the files are to `console`; the exit code says whether rows have failed."""
    from vision_rl.evaluation.summary import render_markdown

    print(render_markdown(summary))
    results = f"results: {output}   look at: {output / 'report.html'}"
    console.print(results, highlight=False, soft_wrap=True, markup=False)
    if summary["failed"]:
        console.print(f"{summary['failed']} rows failed; the same command again asks for those only", highlight=False)
    return 1 if summary["failed"] else 0


if __name__ == "__main__":
    main()
