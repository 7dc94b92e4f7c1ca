"""Errors that a user can correct: one sentence names the file, row or setting and says what to do."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import difflib
import gc
import os
import signal
import sys
from collections.abc import Collection, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

ENDINGS = (signal.SIGTERM, signal.SIGHUP)


class UserError(Exception):
    """Bad input or a bad environment; the message is one clear sentence with the cure, and is all that the user sees."""


def near(name: str, known: Collection[str], *, cutoff: float = 0.6) -> str:
    """The known name that was meant, or "": one of the same letters ("dpao" is dapo, not papo), or the closest spelling."""
    swapped = [one for one in known if sorted(one) == sorted(name)]
    return next(iter(swapped or difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), "")


def meant(name: str, known: Collection[str], *, cutoff: float = 0.6) -> str:
    """The end of a message about a name that there is not: "; did you mean X?", or ""."""
    nearest = near(name, known, cutoff=cutoff)
    return f"; did you mean {nearest}?" if nearest else ""


def typed(command: str) -> str:
    """How a command is typed: as `vision-rl NAME` where this process was started so, else as the script of that name."""
    script = {"train": "python train_agent.py", "report": "python -m vision_rl.report"}[command]
    return f"vision-rl {command}" if sys.argv[0].startswith("vision-rl ") else script


class Parser(argparse.ArgumentParser):
    """The parser of every command: a docstring as its description, an error as one sentence with the nearest option."""

    def __init__(self, description: str | None = None, **options: Any) -> None:
        module = getattr(sys.modules["__main__"], "__spec__", None)
        if module and sys.argv[0].endswith(".py"):  # `python -m`: argparse would say __main__.py
            options.setdefault("prog", f"python -m {module.name.removesuffix('.__main__')}")
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(description=description, **options)

    def error(self, message: str) -> NoReturn:
        """One line on stderr and exit code 2."""
        unknown = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
        if unknown != message.split()[0] and unknown.startswith("-"):
            message = f"unknown option {unknown}{meant(unknown, self._option_string_actions)}"
        self.exit(2, f"error: {message} ({self.prog} --help lists what there is)\n")


@contextlib.contextmanager
def cli_errors() -> Iterator[None]:
    """Turn a `UserError` into one line on stderr and exit code 2; other exceptions are defects and keep their traceback.

    Ctrl-C is one word and exit code 130. A reader of the output that leaves early (`| head`) ends the program with 141. Both
    are how the shell's own tools end. So is 143 after SIGTERM: it unwinds the stack, so that what the command has started, a
    server above all, ends with it.
    """
    before = {number: signal.getsignal(number) for number in ENDINGS}
    atexit.register(gc.freeze)  # else Python looks through half a million objects of torch before it ends: 8 s for 2
    try:
        with contextlib.suppress(ValueError):  # not the main thread, which alone may do this
            for number in [one for one in ENDINGS if before[one] is signal.SIG_DFL]:
                signal.signal(number, _unwind_of(os.getpid()))
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        with contextlib.suppress(ValueError):
            for number, handler in before.items():
                signal.signal(number, handler)


def _unwind_of(process: int) -> Any:
    """A handler that ends this process by `SystemExit`, and a process that was forked from it at once: the servers and files
    on its copied stack are not its own."""

    def unwind(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:
            os._exit(128 + number)
        for one in ENDINGS:
            signal.signal(one, signal.SIG_IGN)  # a second signal must not cut the clean-up short
        sys.exit(128 + number)

    return unwind


def say_in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As `sys.excepthook`, for what ends a command while it still imports: Ctrl-C is one word (Python then ends by the
    signal, 130 to a shell), and a package that this Python lacks is one sentence where a file of ours asks for it."""
    if kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return
    last = trace
    while last and last.tb_next:
        last = last.tb_next
    file, package = os.path.abspath(last.tb_frame.f_code.co_filename if last else ""), os.path.dirname(__file__)
    root = os.path.dirname(package)
    ours = file.startswith(package + os.sep) or os.path.dirname(file) in (root, os.path.join(root, "baselines"))
    if isinstance(error, ModuleNotFoundError) and ours:
        cure = (
            "activate the environment that make has made (. .venv/bin/activate), or install the project (pip install .)"
        )
        print(f"error: {sys.executable} has no package {error.name}; {cure}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
