"""The folder of one evaluation. Each row is written as it is scored, so a kill costs only the rows under way.

`evaluation.json` says what was evaluated on what; a directory with another identity is refused, the same one goes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vision_rl.errors import UserError
from vision_rl.files import replacing
from vision_rl.run.log import read_jsonl
from vision_rl.types import Record

IDENTITY = "evaluation.json"
ROWS = "rows.jsonl"
_KEYS = {"row", "task", "image_paths", "answers", "boxes", "meta", "reply", "reward", "components", "failure", "usage"}
"""One line of rows.jsonl: what `runner.record_of` makes."""


class EvaluationStore:
    """Rows that are done, and a place to add to; made by `open_store`."""

    def __init__(self, directory: Path, file: io.FileIO, records: dict[int, Record]) -> None:
        self.directory = directory
        self.records = records
        self._file = file

    def done(self) -> set[int]:
        """Numbers of the rows that need not be asked again: those that failed do."""
        return {number for number, record in self.records.items() if not record["failure"]}

    def add(self, record: Record) -> None:
        """Keep one row's outcome; raises `UserError` when the disk refuses it."""
        with disk_errors(self.directory):
            line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "the disk took only a part of a row")
        self.records[record["row"]] = record


@contextlib.contextmanager
def open_store(
    directory: str | Path, identity: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[EvaluationStore]:
    """Open or make the directory of the evaluation that `identity` (JSON values) describes.

    Raises `UserError` if it holds another evaluation and `overwrite` is not set, if another process is writing there,
    or if it cannot be written.
    """
    directory = Path(directory).absolute()
    if overwrite and (directory / IDENTITY).exists():
        shutil.rmtree(directory)
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        _check_identity(directory, dict(identity))
        # Unbuffered: what is in the file is what is done, and closing has nothing left to fail with.
        file = open(directory / ROWS, "ab", buffering=0)  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process writes to {directory}; wait for it or name another --output") from None
        records, whole = _read_rows(directory)
        # A line that a kill cut short would run into the next one.
        os.truncate(directory / ROWS, whole)
        yield EvaluationStore(directory, file, records)


def _check_identity(directory: Path, identity: dict[str, Any]) -> None:
    path, rows = directory / IDENTITY, directory / ROWS
    if not path.exists() or not rows.exists() or not rows.stat().st_size:
        write_json(path, identity)  # nothing was scored there yet
        return
    kept, new = _flat(read_identity(directory)), _flat(identity)
    changed = sorted(key for key in kept.keys() | new.keys() if kept.get(key) != new.get(key))
    if changed:
        key = changed[0]
        raise UserError(
            f"{directory} holds another evaluation ({key} is {kept.get(key)!r} there and {new.get(key)!r} now); "
            "delete it with --overwrite or name another --output"
        )


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries under dotted keys, so that an error can name the one setting that differs."""
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": item for name, item in _flat(value).items()}
        else:
            flat[key] = value
    return flat


def read_identity(directory: str | Path) -> dict[str, Any]:
    """What was evaluated in `directory`; `UserError` if it holds no evaluation."""
    path = Path(directory) / IDENTITY
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{directory} holds no evaluation ({IDENTITY} is missing); make one with evaluate_agent.py"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete the directory and evaluate again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; delete the directory and evaluate again")
    return value


def read_records(directory: str | Path) -> dict[int, Record]:
    """The last line of every row, by row number, in the order of the rows."""
    return dict(sorted(_read_rows(Path(directory))[0].items()))


def _read_rows(directory: Path) -> tuple[dict[int, Record], int]:
    """(last line of every row, bytes of whole lines); `UserError` where the file was damaged."""
    path = directory / ROWS
    lines, whole = read_jsonl(path)
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or not line.keys() >= _KEYS:
            raise UserError(f"{path}, line {number} is not a scored row; remove it, or evaluate anew")
    return {line["row"]: line for line in lines}, whole


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; raises `UserError` when the disk refuses it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically; raises `UserError` when the disk refuses it."""
    with disk_errors(path), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fingerprint(path: str | Path) -> str:
    """sha256 of a file, so that a changed file is not taken for the one that was evaluated."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check --data") from error
    return digest.hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the file system raises (a full disk, a read-only one) into one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}); free space or name another --output, and run the same "
            "command again: finished rows are kept"
        ) from error
