"""Score a hosted model, or a constant answer that ignores the picture, on a data file.

    export OPENAI_API_KEY=...                    # and OPENAI_BASE_URL for another provider or a server of your own
    python baselines/api_baseline.py --model gpt-4o-mini --data val.parquet --limit 500 --price-in 0.15 --price-out 0.60
    python baselines/api_baseline.py --model gpt-4o-mini --data val.parquet --dry-run
    python baselines/api_baseline.py --trivial most-common-answer --train train.parquet --data val.parquet

Agents, prompts, rewards and result files are those of evaluate_agent.py. baselines/compare.py compares the results.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # in a checkout that is not installed
from vision_rl.errors import Parser, UserError, cli_errors  # first: it says what this Python lacks

# isort: split
from rich.console import Console

from baselines.constant import KINDS
from evaluate_agent import (
    add_data_arguments,
    add_run_arguments,
    identity_of,
    limits_of,
    output_of,
    report_outcome,
    rows_of,
    sampling_of,
    with_settings,
)
from vision_rl.settings import AgentSettings
from vision_rl.tasks import get_task
from vision_rl.types import Record
from vision_rl.waiting import waiting

OPENAI = "https://api.openai.com/v1"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(__doc__)
    what = parser.add_argument_group("what to score")
    who = what.add_mutually_exclusive_group(required=True)
    who.add_argument("--model", help="model name at the API")
    who.add_argument("--trivial", choices=sorted(KINDS), help="give this constant answer to every row")
    what.add_argument("--base-url", help=f"default: OPENAI_BASE_URL, else {OPENAI}")
    what.add_argument("--train", type=Path, help="training file from which --trivial takes its answer")
    what.add_argument(
        "overrides", nargs="*", metavar="agent.key=value", help="settings of the agent, for example agent.max_tokens=64"
    )
    add_data_arguments(parser)
    add_run_arguments(parser)
    api = parser.add_argument_group("cost and limits of the API")
    api.add_argument("--price-in", type=float, help="price per million prompt tokens")
    api.add_argument("--price-out", type=float, help="price per million completion tokens")
    api.add_argument("--dry-run", action="store_true", help="estimate requests and cost; send nothing")
    api.add_argument(
        "--image-bytes",
        type=int,
        default=1_500_000,
        help="most bytes of a picture's data: URI; larger pictures are scaled down (default: %(default)s)",
    )
    api.add_argument(
        "--image-side", type=int, default=2048, help="longest side of a picture in pixels (default: %(default)s)"
    )
    api.add_argument(
        "--reasoning", action="store_true", help="send max_completion_tokens and no temperature (o-series, GPT-5)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_intermixed_args(argv)  # overrides may stand between flags
    console = Console(stderr=True)
    with waiting("reading settings", console), cli_errors():
        from vision_rl.evaluation.session import resumable
    with cli_errors(), resumable(console):
        sys.exit(run_trivial(args, console) if args.trivial else run_api(args, console))


def run_api(args: argparse.Namespace, console: Console) -> int:
    """Ask the API; returns the exit code."""
    if (args.price_in is None) != (args.price_out is None):
        raise UserError("--price-in and --price-out go together, each per million tokens")
    for name, least in (("price_in", 0), ("price_out", 0), ("image_bytes", 1), ("image_side", 1)):
        if (value := getattr(args, name)) is not None and not least <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value} makes no sense; give {least} or more")
    base_url = args.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
    if base_url == OPENAI and not os.environ.get("OPENAI_API_KEY") and not args.dry_run:
        raise UserError("OPENAI_API_KEY is not set; export it, or OPENAI_BASE_URL for a server that needs no key")
    data, by_task = rows_of(args)
    return max([_run_api(args, data, task, by_task, base_url, console) for task in by_task])


def _run_api(
    args: argparse.Namespace, data: Path, task: str, by_task: Mapping[str, Any], base_url: str, console: Console
) -> int:
    """Ask about the rows of one task."""
    from baselines.budget import PictureBudget, Prices, estimate
    from vision_rl.config.resolve import overrides_for
    from vision_rl.evaluation.session import Job, evaluate
    from vision_rl.evaluation.targets import agent_settings, served_pixels

    overrides = overrides_for(task, list(by_task), [*served_pixels(args.served_pixels), *args.overrides])
    settings = agent_settings(task, overrides, cpu=False, model_dir=None, trained_as=None, transport="data")
    # Not evaluate_agent.py's folder of the same model (--model tiny after --tiny): pictures are sent smaller here.
    output = output_of(args, task, list(by_task), data, f"api-{args.model}")
    budget = PictureBudget(output / "pictures", args.image_bytes, args.image_side)
    prices = Prices(args.price_in, args.price_out)
    rows = by_task[task]
    before = estimate([row for _, row in rows], budget, settings.max_tokens, prices, settings.max_turns)
    console.print(before.render(), highlight=False, soft_wrap=True)
    if args.dry_run:
        return 0

    def cost(records: Sequence[Record]) -> dict[str, Any]:
        used = [record["usage"] for record in records]
        return {
            "cost": prices.cost(sum(u["prompt_tokens"] for u in used), sum(u["completion_tokens"] for u in used)),
            "cost_estimated": before.cost,
        }

    pictures = {"image_bytes": args.image_bytes, "image_side": args.image_side}
    sampling = reasoning_sampling(settings) if args.reasoning else sampling_of(args)
    kept = {"reasoning": True} if args.reasoning else sampling
    job = Job(
        rows=rows,
        identity={**identity_of(task, args.model, base_url, data, settings, kept), "pictures": pictures},
        output=output,
        prepare=lambda row: with_settings(settings, budget.fitted(row)) | {"whole_paths": row["image_paths"]},
        sampling=sampling,
        limits=limits_of(args),
        overwrite=args.overwrite,
        extra=cost,
    )

    @contextlib.contextmanager
    def server() -> Iterator[tuple[str, str]]:
        yield base_url, args.model

    return report_outcome(evaluate(job, server, console), output, console)


def reasoning_sampling(settings: AgentSettings) -> dict[str, Any]:
    """Parameters for models that refuse max_tokens: the agents' own is left out of the request."""
    import openai

    return {"max_tokens": openai.omit, "max_completion_tokens": settings.max_tokens}


def run_trivial(args: argparse.Namespace, console: Console) -> int:
    """Score a constant answer; returns the exit code."""
    from baselines.constant import constant_reply, constant_server
    from vision_rl.evaluation.session import Job, evaluate
    from vision_rl.evaluation.targets import agent_settings

    data, by_task = rows_of(args)
    tasks = [task for task in by_task if get_task(task).truth == KINDS[args.trivial]]
    if not tasks:
        held = " and ".join(by_task)
        raise UserError(f"--trivial {args.trivial} answers with {KINDS[args.trivial]}, but {data} holds {held} rows")
    task = tasks[0]
    settings = agent_settings(task, args.overrides, cpu=False, model_dir=None, trained_as=None, transport="file")
    reply = constant_reply(args.trivial, args.train, settings.answer_format, task, settings.family)
    console.print(f"{args.trivial}: {reply}", highlight=False, markup=False)
    if args.dry_run:
        return 0
    job = Job(
        rows=by_task[task],
        identity=identity_of(task, args.trivial, reply, data, settings, {}),
        output=output_of(args, task, list(by_task), data, args.trivial),
        prepare=partial(with_settings, settings),
        limits=limits_of(args),
        overwrite=args.overwrite,
    )
    summary = evaluate(job, lambda: constant_server(reply, args.trivial), console)
    return report_outcome(summary, job.output, console)


if __name__ == "__main__":
    main()
