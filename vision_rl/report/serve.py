"""The page of a run that goes on, served on this machine alone: it asks every two seconds whether there is something new."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import uvicorn
from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from vision_rl.errors import UserError
from vision_rl.report.index import RolloutIndex
from vision_rl.report.page import Page, render
from vision_rl.report.run import Choice

HOST = "127.0.0.1"
WRITTEN = (".json", ".jsonl", ".yaml")
"""Suffixes of the files that a page is made of."""
Build = Callable[[Sequence[Path], Choice, dict[Path, RolloutIndex]], Page]


def application(directories: Sequence[Path], choice: Choice, build: Build) -> Starlette:
    """Three routes: the page (`?steps=1,20` chooses other rollouts), its version, and Plotly's script.

    Only requests that name this machine are answered: a page elsewhere cannot read the run through a name of its own
    that it points here (DNS rebinding).
    """
    lock, indexes = threading.Lock(), dict[Path, RolloutIndex]()

    def page(request: Request) -> Response:
        steps = request.query_params.get("steps", "")
        asked = tuple(int(step) for step in steps.split(",") if step.isdecimal())
        try:
            with lock:
                now = version_of(directories)  # before reading: what is written meanwhile is seen at the next look
                shown = build(directories, replace(choice, steps=asked) if asked else choice, indexes)
        except UserError as error:
            return PlainTextResponse(f"error: {error}", 500)
        return HTMLResponse(render(shown, version=now))

    def version(request: Request) -> Response:
        return PlainTextResponse(version_of(directories))

    def plotly(request: Request) -> Response:
        return Response(get_plotlyjs(), media_type="text/javascript", headers={"cache-control": "max-age=86400"})

    routes = [Route("/", page), Route("/version", version), Route("/plotly.js", plotly)]
    hosts = [HOST, "localhost"]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)])


def version_of(directories: Sequence[Path]) -> str:
    """A text that changes when one of the files of the directories does."""
    files = sorted(path for folder in directories for path in folder.iterdir() if path.suffix in WRITTEN)
    states = [path.stat() for path in files]
    return "-".join(f"{state.st_size:x}.{state.st_mtime_ns:x}" for state in states)


def serve(directories: Sequence[Path], choice: Choice, port: int, build: Build) -> None:
    """Serve until Ctrl-C. Raises `UserError` for directories without a page, and for a port that is taken."""
    build(directories, choice, {})
    server = uvicorn.Server(
        uvicorn.Config(application(directories, choice, build), host=HOST, port=port, log_level="warning")
    )
    print(f"http://{HOST}:{port}/ follows {', '.join(map(str, directories))}; Ctrl-C ends it", flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        return
    except SystemExit as error:
        raise UserError(f"port {port} cannot be had; name another with --port") from error
