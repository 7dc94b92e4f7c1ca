"""Write files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vision_rl.errors import UserError


class WriteError(UserError, OSError):
    """A file could not be written. An `OSError` too, for those who go on without the file."""

    def __init__(self, path: Path, error: OSError) -> None:
        reason = error.strerror or str(error)
        super().__init__(f"cannot write {path} ({reason}); free space or choose an output in a writable directory")
        self.errno, self.strerror = error.errno, reason

    def __str__(self) -> str:
        return str(self.args[0])


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; it becomes `path` when the block ends, and is removed when it fails.

    A process that is killed outright leaves a hidden `.name.*.tmp`, never a half `path`; the next writer of the same
    path removes it (a lock tells it from the file of a writer that is still alive). Raises `WriteError` for what the
    file system refuses, inside the block too.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise WriteError(path, error) from error
    temporary = Path(name)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield temporary
        temporary.chmod(0o666 & ~umask())
        os.replace(temporary, path)
    except WriteError:  # of a file that the block wrote
        raise
    except OSError as error:
        raise WriteError(path, error) from error
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8: a full disk leaves what was there before."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError), leftover.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink(missing_ok=True)


def umask() -> int:
    """This process's, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
