"""Make the tiny checkpoint: `python -m vision_rl.tiny [--output DIR] [--seed N]`."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vision_rl.errors import UserError, cli_errors
from vision_rl.tiny import checkpoint_dir
from vision_rl.tiny.model import build_model, build_processor, round_weights, save_checkpoint
from vision_rl.tiny.warmstart import warm_start


def build(output: Path, seed: int) -> None:
    """Build, warm-start and save the checkpoint; an older one in `output` is replaced at the end, or not at all."""
    if output.exists() and not (output.is_dir() and (not any(output.iterdir()) or (output / "config.json").exists())):
        raise UserError(f"{output} exists and is not a checkpoint; choose another --output")
    processor = build_processor()
    model = build_model(processor.tokenizer, seed)
    columns = (
        TextColumn("warm start"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
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


def main() -> None:
    """Parse the command line and build the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m vision_rl.tiny", description=__doc__)
    parser.add_argument("--output", type=Path, default=checkpoint_dir(), help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the training pictures")
    arguments = parser.parse_args()
    with cli_errors():
        build(arguments.output, arguments.seed)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
