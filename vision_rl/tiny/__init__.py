"""A tiny Qwen2.5-VL and synthetic tasks for it: they run the whole stack on a plain machine in minutes."""

from __future__ import annotations

from pathlib import Path

from vision_rl.tiny.tasks import write_tasks

__all__ = ["checkpoint_dir", "write_tasks"]


def checkpoint_dir() -> Path:
    """The folder of the warm-started checkpoint that ships with the package; `python -m scripts.tiny_models` makes it anew."""
    return Path(__file__).resolve().parent / "checkpoint"
