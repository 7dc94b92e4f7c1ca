"""Say what a command waits for, at once and again every few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

EVERY_SECONDS = 4.0


@contextmanager
def waiting(text: str, console: Console, *, alone: bool = False) -> Iterator[None]:
    """Show `text` while the block runs: with a spinner in a terminal, else as a line that comes again with the seconds.

    alone: what Python prints meanwhile goes where stdout goes; rich would show it above the spinner.
    """
    if console.is_terminal:
        from rich.live import Live
        from rich.spinner import Spinner

        spinner = Spinner("dots", text)
        with Live(spinner, console=console, transient=True, redirect_stdout=not alone, redirect_stderr=not alone):
            yield
        return
    done, started = threading.Event(), time.monotonic()

    def say() -> None:
        while not done.wait(EVERY_SECONDS):
            console.print(f"{text}: {time.monotonic() - started:.0f} s", highlight=False, markup=False, soft_wrap=True)

    console.print(text, highlight=False, markup=False, soft_wrap=True)
    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
