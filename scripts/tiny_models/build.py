"""Build a checkpoint folder from a recipe. The old folder is replaced at the end, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from scripts.tiny_models.model import build_model, round_weights, save_checkpoint
from vision_rl.errors import UserError

WarmStart = Callable[
    [Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, int, Callable[[int, int, float], None]], None
]
"""Trains a model in place: (model, processor, seed, progress), which calls progress(step, steps, loss)."""


def build_checkpoint(output: Path, seed: int, processor: Qwen2_5_VLProcessor, warm_start: WarmStart) -> None:
    """Build, warm-start and save a tiny model. Raises `UserError` if `output` is something other than a checkpoint."""
    if output.exists() and not (output.is_dir() and (not any(output.iterdir()) or (output / "config.json").exists())):
        raise UserError(f"{output} exists and is not a checkpoint; choose another --output")
    model = build_model(processor.tokenizer, seed)
    columns = (TextColumn("warm start"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task("warm start", total=None, loss=float("nan"))
        warm_start(
            model, processor, seed, lambda done, total, loss: bar.update(task, completed=done, total=total, loss=loss)
        )
    round_weights(model)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as temporary:
        save_checkpoint(model, processor, Path(temporary) / "new")
        shutil.rmtree(output, ignore_errors=True)
        os.replace(Path(temporary) / "new", output)
