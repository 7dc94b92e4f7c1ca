"""Chat templates by name; transformers saves each as `<name>.jinja`.

The names come with the checkpoint, and verl saves the processor with every checkpoint and when it merges one. transformers
below 5.10 wrote one with "../" in it anywhere (CVE-2026-9856); 5.10 raises, in the midst of saving. A bad name is refused here
when the model is first looked at, and once more before a save.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vision_rl.errors import UserError


def check_template_names(saved: Any, source: object) -> None:
    """Raise `UserError` if saving the processor or tokenizer `saved`, which came from `source`, would leave its folder."""
    for part in (saved, getattr(saved, "tokenizer", None)):
        _check(_names(getattr(part, "chat_template", None)), source)


def check_template_files(folder: Path) -> None:
    """Raise `UserError` if a configuration file in `folder` names a chat template that would be saved elsewhere."""
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # whoever needs the file says what is wrong with it
        if isinstance(content, dict):
            _check(_names(content.get("chat_template")), file)


def _names(templates: Any) -> list[str]:
    """The names in a `chat_template`: a dict of templates, or a list of {"name", "template"}; one text has none."""
    if isinstance(templates, dict):
        return [str(name) for name in templates]
    if isinstance(templates, list | tuple):
        return [str(entry["name"]) for entry in templates if isinstance(entry, dict) and "name" in entry]
    return []


def _check(names: Iterable[str], source: object) -> None:
    for name in names:
        if name in (".", "..") or any(mark in name for mark in "/\\\0"):
            raise UserError(
                f"{source}: the chat template {name!r} is no plain file name, and a checkpoint with it would leave its own "
                "folder (CVE-2026-9856); take the model from a source that you trust, or rename the template"
            )
