"""Constant answers: the most common answer of a training file, the centre box, or the mean box.

Each is a server on this machine that always says the same, so that the agents' own code asks and scores it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI

from vision_rl.answers.space import AnswerSpace
from vision_rl.data.schema import read_rows
from vision_rl.errors import UserError
from vision_rl.rewards.vqa import best_answer, by_frequency

KINDS = {"most-common-answer": "answers", "centre-box": "boxes", "mean-box": "boxes"}
"""Trivial baselines, and the kind of truth that each imitates."""
CENTRE = (0.25, 0.25, 0.75, 0.75)
"""Half of the picture's width and height, in its middle."""
_START_SECONDS = 30.0


def constant_reply(
    kind: str, train: Path | None, answer_format: str, task: str | None = None, family: str = "unit"
) -> str:
    """What a trivial baseline says to every row; task: whose rows of the training file count (None: all).

    Raises `UserError` if it needs a training file and there is none.
    """
    if kind == "centre-box":
        return AnswerSpace(answer_format, family).write([CENTRE])
    if train is None:
        raise UserError(f"--trivial {kind} needs --train, the file that it takes its answer from")
    rows = read_rows(train, task=task)
    if kind == "most-common-answer":
        answers = by_frequency([best_answer(row["answers"])[0] for row in rows if row["answers"]])
        if not answers:
            raise UserError(f"{train} holds no answers; give --train a file with them")
        return answers[0][0]
    boxes = [box for row in rows for box in row["boxes"]]
    if not boxes:
        raise UserError(f"{train} holds no boxes; give --train a file with them")
    return AnswerSpace(answer_format, family).write([np.mean(boxes, axis=0).tolist()])


@contextlib.contextmanager
def constant_server(reply: str, model: str) -> Iterator[tuple[str, str]]:
    """(base URL, model) of a server that answers every chat completion with `reply`, for as long as the block runs."""
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "constant"}]}

    @app.post("/v1/chat/completions")
    def completions() -> dict[str, Any]:
        message = {"role": "assistant", "content": reply}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "constant", "object": "chat.completion", "created": 0, "model": model, "choices": [choice]}

    with running(app) as url:
        yield url, model


@contextlib.contextmanager
def running(app: Any) -> Iterator[str]:
    """The base URL of an ASGI application that uvicorn serves in a thread."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + _START_SECONDS
    while not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise UserError("the baseline's own server did not start; is the machine out of ports or memory?")
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
