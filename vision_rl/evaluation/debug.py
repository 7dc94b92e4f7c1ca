"""Debug an agent: ask any OpenAI-compatible endpoint or the tiny model about a few rows, and show everything."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vision_rl.agent.openai_client import shared_client
from vision_rl.data.row import normalise_row
from vision_rl.data.schema import read_rows
from vision_rl.errors import Parser, UserError, cli_errors
from vision_rl.media.images import image_size
from vision_rl.settings import AgentSettings
from vision_rl.tasks import Task, get_task
from vision_rl.types import LLM, Reward
from vision_rl.waiting import waiting

Row = dict[str, Any]
Asked = tuple[Row, list[tuple[str, str]], str, Reward]
"""A row, (role, text) of what was said about it, the reply and its reward."""
SAMPLE = 8
UNKNOWN = "not known"
"""The place of a gold answer, for a picture and a question of one's own."""


def parser(task: Task) -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(f"Ask a model about rows of the task {task.name}, and show all of it.")
    whom = parser.add_argument_group("whom to ask (default: the tiny model, which vLLM serves meanwhile)")
    whom.add_argument("--endpoint", help="base URL of a server (default: OPENAI_BASE_URL); OPENAI_API_KEY is its key")
    whom.add_argument("--model", help="name of the model at the endpoint")
    whom.add_argument("--temperature", type=float, default=0.0)
    whom.add_argument(
        "--image-transport",
        choices=("file", "data"),
        help="how pictures are sent (default: data for an endpoint, file for the tiny model)",
    )
    what = parser.add_argument_group("what to ask (default: synthetic rows)")
    what.add_argument("--data", type=Path, help="parquet file")
    what.add_argument("--row", type=int, default=0, help="first row to ask about, counted from 0")
    what.add_argument(
        "--rows",
        type=int,
        help=f"number of rows (default: 1; of synthetic rows {SAMPLE}, and only the best and the worst are shown)",
    )
    what.add_argument("--image", type=Path, help="ask about this picture, with --question")
    what.add_argument("--question", help="question about --image; without a gold answer there is no reward")
    return parser


def main(task: str, argv: Sequence[str] | None = None) -> None:
    """Ask about the rows that the command line names, and show picture, prompt, reply, gold and reward of each."""
    with cli_errors():
        row_of_table = get_task(task)
        args = parser(row_of_table).parse_args(argv)
        check(args)
        console, started = Console(), time.monotonic()
        with waiting("reading rows and settings", console):
            rows = rows_of(args, row_of_table)
            settings = settings_of(row_of_table, args)
        with contextlib.ExitStack() as stack:
            url, model = (args.endpoint, args.model) if args.endpoint else stack.enter_context(_tiny_server(console))
            llm = LLM(endpoint=url, model=model, sampling_parameters={"temperature": args.temperature})
            with waiting(f"asking {model} at {url}", console):
                asked = asyncio.run(_ask_all(row_of_table, rows, settings, llm))
            console.print(Text(f"{len(rows)} answered after {time.monotonic() - started:.1f} s", "dim"), soft_wrap=True)
            if args.rows is None and len(asked) > 1:
                said, asked = contrast(asked)
                console.print(said)
            for row, spoken, reply, reward in asked:
                console.print(shown(row_of_table, row, settings, spoken, reply, reward))


def check(args: argparse.Namespace) -> None:
    """Raise `UserError` for options that do not go together."""
    if args.model is not None:
        args.endpoint = args.endpoint or os.environ.get("OPENAI_BASE_URL")
    if (args.endpoint is None) != (args.model is None):
        raise UserError("--endpoint and --model go together")
    if (args.image is None) != (args.question is None):
        raise UserError("--image and --question go together: name the picture and what to ask about it")
    if args.image is not None and args.data is not None:
        raise UserError("--image asks about one picture, --data about the rows of a file; give one of the two")
    if args.row < 0:
        raise UserError(f"--row {args.row} is below 0; rows are counted from 0")
    if args.rows is not None and args.rows < 1:
        raise UserError(f"--rows {args.rows} asks about nothing; give 1 or more")


def rows_of(args: argparse.Namespace, task: Task) -> list[Row]:
    """The rows to ask about; those of --image have no truth, and `gold_known` False."""
    if args.image is not None:
        raw = {"id": args.image.name, "image_path": str(args.image.absolute()), "question": args.question}
        nothing = {"answers": [UNKNOWN]} if task.truth == "answers" else {"boxes": []}
        image_size(args.image)  # refuses what is no picture
        return [{**normalise_row({**raw, **nothing}, task=task.name), "gold_known": False}]
    path, count = args.data, args.rows or 1
    if path is None:
        count = args.rows or (1 if args.endpoint else SAMPLE)
        from vision_rl.tiny import write_tasks

        path = write_tasks(Path("data") / "synthetic" / task.name, task.name)["val"]
    rows = read_rows(path, task=task.name, limit=args.row + count)[args.row :]
    if not rows:
        there = len(read_rows(path, task=task.name))
        raise UserError(f"{path} has {there} rows of task {task.name}; --row {args.row} is beyond them")
    return rows


def settings_of(task: Task, args: argparse.Namespace) -> AgentSettings:
    """The agent's settings: the defaults with the task's own, and for the tiny model those of its preset."""
    if args.endpoint is None:
        from vision_rl.config.resolve import resolve

        settings = resolve("cpu", task=task.name).agent
    else:
        own = {key.removeprefix("agent."): value for key, value in task.layer().items() if key.startswith("agent.")}
        settings = AgentSettings(**own)
    transport = args.image_transport or ("data" if args.endpoint else "file")
    return dataclasses.replace(settings, image_transport=transport)


@contextlib.contextmanager
def _tiny_server(console: Console) -> Iterator[tuple[str, str]]:
    from vision_rl.evaluation.targets import model_folder, warm_server
    from vision_rl.serving.serve import MODEL_NAME, serve

    folder = model_folder(None)
    if warm := warm_server(folder):
        yield warm
        return
    with contextlib.ExitStack() as stack:
        about = "vLLM loads the tiny model, half a minute or more (python -m vision_rl.serve --tiny keeps one warm)"
        with waiting(about, console):
            url = stack.enter_context(serve(folder, cpu=True, max_model_len=512))
        yield url, MODEL_NAME


def contrast(asked: Sequence[Asked]) -> tuple[str, list[Asked]]:
    """The reply with the largest reward and the one with the smallest, and a sentence about them and all the others."""
    ranked = sorted(asked, key=lambda one: -one[-1].value)
    right = sum(reward.value >= 1 for *_, reward in ranked)
    return f"{right} of {len(ranked)} earn the full reward; the best reply and the worst:", [ranked[0], ranked[-1]]


async def _ask_all(task: Task, rows: Sequence[Row], settings: AgentSettings, llm: LLM) -> list[Asked]:
    import openai

    asked = []
    for row in rows:
        spoken: list[tuple[str, str]] = []
        try:
            with listening(spoken):
                reply, reward = await task.part("answer")({**row, "settings": dataclasses.asdict(settings)}, llm)
        except (openai.OpenAIError, ValueError) as error:
            raise UserError(
                f"{llm.endpoint} did not answer for model {llm.model}: {error}; check the address, the name and "
                "OPENAI_API_KEY"
            ) from error
        asked.append((row, spoken, reply, reward))
    return asked


@contextlib.contextmanager
def listening(spoken: list[tuple[str, str]]) -> Iterator[None]:
    """Add (role, text) of all that is asked and answered inside the block, by httpx's hooks on the agents' client."""
    client: Any = shared_client()._client
    before = client.event_hooks

    async def on_request(request: Any) -> None:
        messages = json.loads(request.content or b"{}").get("messages", [])
        spoken[:] = [(str(message.get("role")), text_of(message.get("content"))) for message in messages]

    client.event_hooks = {"request": [*before["request"], on_request], "response": before["response"]}
    try:
        yield
    finally:
        client.event_hooks = before


def text_of(content: Any) -> str:
    """The text of a message; a picture is named as one, since its data: URI would fill the screen."""
    if not isinstance(content, list):
        return str(content or "")
    return "\n".join(part["text"] if part.get("type") == "text" else f"[{part.get('type')}]" for part in content)


def shown(
    task: Task, row: Row, settings: AgentSettings, spoken: Sequence[tuple[str, str]], reply: str, reward: Reward
) -> Table:
    """What happened with a row, as a table of names and texts, the reward's components below each other."""
    known = row.get("gold_known", True)
    table = Table(show_header=False, title=plain(f"row {row['id']}"), title_justify="left", expand=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    sizes = [f"{path} ({'x'.join(map(str, image_size(path)))} pixels)" for path in row["image_paths"]]
    table.add_row("picture", plain("\n".join(sizes)))
    table.add_row("question", plain(row["question"]))
    for role, text in spoken:
        table.add_row("prompt" if role == "user" else role, plain(text))
    table.add_row("reply", plain(reply))
    if drawing := task.part("drawing"):
        record = {**row, "reply": reply, "components": reward.components}
        boxes = drawing(record, settings, image_size(row["image_paths"][0]))
        table.add_row("boxes", plain("\n".join(map(_numbers, boxes)) or "none"))
    truth = row["boxes"] if task.truth == "boxes" else list(dict.fromkeys(row["answers"]))
    gold = "\n".join(_numbers(one) if task.truth == "boxes" else _counted(one, row["answers"]) for one in truth)
    nothing = "the environment's own" if task.truth == "environment" else "nothing to find"
    table.add_row("gold", plain(gold or nothing) if known else "not known, so there is no reward")
    if known:
        table.add_row("reward", f"{reward.value:.4f}")
        width = max((len(name) for name in reward.components), default=0)
        parts = "\n".join(f"{name:{width}}  {value:.4g}" for name, value in reward.components.items())
        table.add_row("components", plain(parts))
    return table


def plain(text: str) -> Text:
    """Text of models and data without control characters: it must not steer the terminal."""
    return Text("".join(each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text))


def _numbers(box: Sequence[float]) -> str:
    return ", ".join(f"{number:.3f}" for number in box)


def _counted(answer: str, answers: Sequence[str]) -> str:
    return f"{answer} ({answers.count(answer)} of {len(answers)})" if len(answers) > 1 else answer
