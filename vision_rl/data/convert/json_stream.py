"""The objects of one large JSON array, one at a time, in bounded memory and at the speed of the standard C parser.

Each array item is parsed by `json`'s own C scanner out of a text window that is refilled as it runs out; an item cut by
the window's end fails to parse and is tried again with more text. Only objects may be items, because a cut number would
parse as a shorter one. Not ijson: its C backend (3.6.0, yajl2_c) turns half of a surrogate pair into "?" without a word,
where the row must be refused, and a deeply nested file kills the process instead of raising an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from vision_rl.errors import UserError

WINDOW = 1 << 20
# A single value larger than this is taken for damage, so that a broken file cannot fill the memory.
LIMIT = 1 << 26

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def iter_array(path: str | Path, key: str | None, *, window: int = WINDOW) -> Iterator[dict[str, Any]]:
    """Yield the objects of the array under `key` of the file's outermost object (None: the file is itself the array).

    Raises `UserError` naming the file when it is missing, is not such JSON, or ends early.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = _Window(file, window)
            if key is not None:
                _seek_key(text, key)
            yield from _items(text)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        reason = _reason(error)
        what = f"a JSON object with the array {key!r}" if key else "a JSON array of objects"
        raise UserError(f"{path} is not {what}, or is incomplete ({reason}); download it again") from error


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"


class _Window:
    """The unread part of a text file: `text[position:]`, refilled on demand."""

    def __init__(self, file: TextIO, window: int) -> None:
        self.file = file
        self.window = window
        self.text = ""
        self.position = 0
        self.ended = False

    def refill(self, characters: int) -> None:
        more = self.file.read(characters)
        self.ended = not more
        self.text = self.text[self.position :] + more
        self.position = 0

    def peek(self) -> str:
        """The next character that is not white space; it is not consumed."""
        while True:
            next_one = self.text[self.position : self.position + 1]
            # Four looks an item: most of them need no pattern.
            if next_one and next_one not in " \t\n\r":
                return next_one
            found = _SPACE.match(self.text, self.position)
            self.position = found.end() if found else self.position
            if self.position < len(self.text):
                return self.text[self.position]
            if self.ended:
                raise json.JSONDecodeError("the file ends early", self.text, self.position)
            self.refill(self.window)

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise json.JSONDecodeError(f"expected {character!r}, got {self.peek()!r}", self.text, self.position)
        self.position += 1

    def value(self) -> Any:
        """Consume one JSON value, which must be what `peek` has found."""
        more = self.window
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
                # A value that ends with the window may go on (a number, true): only the next character tells.
                if end < len(self.text) or self.ended:
                    self.position = end
                    return value
            except json.JSONDecodeError:
                if self.ended or len(self.text) - self.position > LIMIT:
                    raise
            self.refill(more)
            more *= 2  # doubling keeps the repeated attempts at a long value linear in its length


def _seek_key(text: _Window, key: str) -> None:
    text.expect("{")
    while True:
        if text.peek() == "}":
            raise json.JSONDecodeError("no such key", text.text, text.position)
        name = text.value()
        text.expect(":")
        text.peek()
        if name == key:
            return
        text.value()
        if text.peek() == ",":
            text.position += 1


def _items(text: _Window) -> Iterator[dict[str, Any]]:
    text.expect("[")
    if text.peek() == "]":
        return
    while True:
        if text.peek() != "{":
            raise json.JSONDecodeError("an item is not an object", text.text, text.position)
        yield text.value()
        if text.peek() == "]":
            return
        text.expect(",")
