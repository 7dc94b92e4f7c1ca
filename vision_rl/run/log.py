"""A run's metrics, rollouts and events as JSON lines that survive a crash."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vision_rl.errors import UserError
from vision_rl.files import replacing

METRICS = "metrics.jsonl"
ROLLOUTS = "rollouts.jsonl"
EVENTS = "events.jsonl"
DETAILS = "detailed_logs"
MAX_PENDING_BYTES = 64 * 2**20

logger = logging.getLogger(__name__)
_pending: dict[Path, bytes] = {}  # what a full disk did not take


class RunLog:
    """Appends to the three files of a run directory; each line is written whole and flushed."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """One line per training step or validation: numbers only."""
        line = {"step": step, "time": time.time(), **{key: _number(value) for key, value in values.items()}}
        append_lines(self.run_dir / METRICS, [line])

    def rollouts(self, records: Iterable[Mapping[str, Any]]) -> None:
        """One line per rollout: what was asked, answered and rewarded, or why it failed."""
        append_lines(self.run_dir / ROLLOUTS, records)

    def event(self, kind: str, **fields: Any) -> None:
        """Something that the operator should see: a phase of the start, a warning, the end."""
        append_lines(self.run_dir / EVENTS, [{"time": time.time(), "kind": kind, **fields}])

    def forget_after(self, step: int) -> None:
        """Drop the metrics and rollouts of later steps: a resumed run does them again, and no line may stand twice.

        What a killed run left half written goes too, of the events as well, which otherwise stay.
        """
        _, whole = read_jsonl(self.run_dir / EVENTS)
        if (self.run_dir / EVENTS).exists():
            os.truncate(self.run_dir / EVENTS, whole)
        details = (path.relative_to(self.run_dir).as_posix() for path in self.run_dir.glob(f"{DETAILS}/*.jsonl"))
        for name in (METRICS, ROLLOUTS, *details):
            kept = [line for line in read_jsonl(self.run_dir / name)[0] if line["step"] <= step]
            with replacing(self.run_dir / name) as temporary, open(temporary, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records as JSON lines, in one write.

    A full disk must not end a run that has trained for a day: what could not be written is kept, a warning is logged
    once, and the next call tries again. Lines beyond `MAX_PENDING_BYTES` are lost, and counted in the log.
    """
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    pending = _pending.pop(path, b"") + lines
    try:
        _append_whole(path, pending)
    except OSError as error:
        logger.warning("%s could not be written (%s); its lines wait in memory", path, error.strerror)
        if len(pending) > MAX_PENDING_BYTES:
            logger.error("%d bytes of %s are lost", len(pending), path)
        else:
            _pending[path] = pending


def _append_whole(path: Path, content: bytes) -> None:
    """Append all of it or nothing: half a line would spoil the file for its readers."""
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            view = memoryview(content)
            while view:
                view = view[file.write(view) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def read_jsonl(path: str | Path, *, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The complete lines of a file from byte `offset` on, and the offset after them; a missing file has none.

    Raises `UserError` for a line that is not JSON: a machine that lost its power may leave zeros in a file.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return [], offset
    whole = content[: content.rfind(b"\n") + 1]
    return [parsed(line, path) for line in whole.splitlines() if line.strip()], offset + len(whole)


def parsed(line: bytes, path: str | Path) -> dict[str, Any]:
    """One line of the JSON lines in `path`; `UserError` if it is damaged."""
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path} has a line that is not JSON ({error}); remove it, or start anew") from error
    return found


def _number(value: Any) -> float | int | None:
    """A JSON number; None for what JSON cannot say (NaN and infinities)."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        return float(number)
    return number if math.isfinite(number) else None
