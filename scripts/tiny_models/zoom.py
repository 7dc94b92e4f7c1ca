"""The tool-using tiny model and its data: `python -m scripts.tiny_models.zoom data DIR` and `... model [--output DIR]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from vision_rl.errors import cli_errors
from vision_rl.waiting import waiting


def zoom_checkpoint_dir() -> Path:
    """The folder of the warm-started checkpoint beside this file; `python -m scripts.tiny_models.zoom model` makes it anew."""
    return Path(__file__).resolve().parent / "zoom_checkpoint"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.tiny_models.zoom", description=__doc__)
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
            with waiting("drawing scenes", Console(stderr=True)):
                from scripts.tiny_models.zoom_scenes import write_zoom_tasks

                write_zoom_tasks(args.directory, train=args.train, val=args.val, seed=args.seed)
        else:
            from scripts.tiny_models.build import build_checkpoint
            from scripts.tiny_models.zoom_warmstart import zoom_processor, zoom_warm_start

            build_checkpoint(args.output, args.seed, zoom_processor(), zoom_warm_start)
    print(f"wrote {args.directory if args.command == 'data' else args.output}")


if __name__ == "__main__":
    main()
