"""The debug mode of the agents: one task, any OpenAI-compatible endpoint or the tiny model, everything printed."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from vision_rl.data.schema import read_rows
from vision_rl.errors import UserError, cli_errors
from vision_rl.tasks import get_task


def main(task: str) -> None:
    """Parse the command line, run the task's agent on one row, print question, gold answer, reply and reward."""
    parser = argparse.ArgumentParser(description=f"Run one {task} task and print what happens.")
    parser.add_argument(
        "--endpoint", help="OpenAI-compatible base URL; default: the tiny model, served by vLLM meanwhile"
    )
    parser.add_argument("--model", help="model name at the endpoint")
    parser.add_argument("--data", type=Path, help="parquet file (default: synthetic tasks)")
    parser.add_argument("--row", type=int, default=0, help="which row, from 0")
    parser.add_argument(
        "--image-transport", choices=("file", "data"), default=None, help="default: data: URIs to an endpoint"
    )
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args()
    with cli_errors():
        if (args.endpoint is None) != (args.model is None):
            raise UserError("--endpoint and --model go together")
        if args.row < 0:
            raise UserError(f"--row {args.row} is below 0; rows are counted from 0")
        row = _row(args, task)
        with contextlib.ExitStack() as stack:
            endpoint, name = (args.endpoint, args.model) if args.endpoint else stack.enter_context(_tiny_server())
            _run(row, endpoint, name, args)


def _row(args: argparse.Namespace, task: str) -> dict[str, Any]:
    path = args.data
    if path is None:
        from vision_rl.tiny import write_tasks

        path = write_tasks(Path("data") / "synthetic" / task, task)["val"]
    rows = read_rows(path, task=task, limit=args.row + 1)
    if len(rows) <= args.row:
        raise UserError(f"{path} has {len(rows)} rows of task {task}; --row {args.row} is beyond them")
    return rows[args.row]


@contextlib.contextmanager
def _tiny_server() -> Any:
    from vision_rl.serving import MODEL_NAME, serve
    from vision_rl.tiny import checkpoint_dir

    with serve(checkpoint_dir(), cpu=True, max_model_len=512) as url:
        yield url, MODEL_NAME


def _run(row: dict[str, Any], endpoint: str, model: str, args: argparse.Namespace) -> None:
    import openai

    from vision_rl.client import LLM
    from vision_rl.engine.config import resolve

    settings = dataclasses.asdict(resolve("cpu", task=row["task"]).agent)
    settings["image_transport"] = args.image_transport or ("data" if args.endpoint else "file")
    llm = LLM(endpoint=endpoint, model=model, sampling_parameters={"temperature": args.temperature})
    try:
        reply, reward = asyncio.run(get_task(row["task"]).part("answer")({**row, "settings": settings}, llm))
    except (openai.OpenAIError, ValueError) as error:
        raise UserError(
            f"{endpoint} did not answer for model {model}: {error}; check the address, the name and OPENAI_API_KEY"
        ) from error
    console = Console()
    console.print("images  ", ", ".join(row["image_paths"]), highlight=False, markup=False)
    if prompt := get_task(row["task"]).part("prompt"):
        console.print("prompt  ", repr(prompt), highlight=False, markup=False)
    console.print("question", row["question"], highlight=False, markup=False)
    console.print("gold    ", row[get_task(row["task"]).truth], highlight=False, markup=False)
    console.print("reply   ", reply, highlight=False, markup=False)
    console.print(
        "reward  ", round(reward.value, 4), {name: round(value, 4) for name, value in reward.components.items()}
    )
