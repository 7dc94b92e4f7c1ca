"""Errors that a user can correct: one sentence that names the file, row or setting, and says what to do."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Bad input or a bad environment; the message is one clear sentence with the cure, and is all that the user sees."""


@contextlib.contextmanager
def cli_errors() -> Iterator[None]:
    """Turn a `UserError` into one line on stderr and exit code 2; other exceptions are defects and keep their traceback.

    Ctrl-C is one word and exit code 130. A reader of the output that leaves early (`| head`) ends the program with 141. Both
    are how the shell's own tools end.
    """
    try:
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
