"""The tool-using tiny model and its data: `python -m vision_rl.tiny.zoom data DIR` and `... model [--output DIR]`."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vision_rl.errors import UserError, cli_errors
from vision_rl.tiny.model import build_model, round_weights, save_checkpoint
from vision_rl.tiny.zoom_scenes import write_zoom_tasks
from vision_rl.tiny.zoom_warmstart import zoom_processor, zoom_warm_start


def zoom_checkpoint_dir() -> Path:
    """The folder of the warm-started checkpoint that ships with the package; `python -m vision_rl.tiny.zoom model` makes
    it anew."""
    return Path(__file__).resolve().parent / "zoom_checkpoint"


def build(output: Path, seed: int) -> None:
    """Build, warm-start and save the checkpoint; an older one in `output` is replaced at the end, or not at all."""
    if output.exists() and not (output.is_dir() and (not any(output.iterdir()) or (output / "config.json").exists())):
        raise UserError(f"{output} exists and is not a checkpoint; choose another --output")
    processor = zoom_processor()
    model = build_model(processor.tokenizer, seed)
    columns = (TextColumn("warm start"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task("warm start", total=None, loss=float("nan"))
        zoom_warm_start(
            model, processor, seed, lambda done, total, loss: bar.update(task, completed=done, total=total, loss=loss)
        )
    round_weights(model)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as temporary:
        save_checkpoint(model, processor, Path(temporary) / "new")
        shutil.rmtree(output, ignore_errors=True)
        os.replace(Path(temporary) / "new", output)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m vision_rl.tiny.zoom", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="write train.parquet and val.parquet with their pictures")
    data.add_argument("directory", type=Path)
    data.add_argument("--train", type=int, default=512)
    data.add_argument("--val", type=int, default=120)
    model = commands.add_parser("model", help="warm-start the model: ten minutes on one core")
    model.add_argument("--output", type=Path, default=zoom_checkpoint_dir())
    for command in (data, model):
        command.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with cli_errors():
        if args.command == "data":
            write_zoom_tasks(args.directory, train=args.train, val=args.val, seed=args.seed)
        else:
            build(args.output, args.seed)
    print(f"wrote {args.directory if args.command == 'data' else args.output}")


if __name__ == "__main__":
    main()
