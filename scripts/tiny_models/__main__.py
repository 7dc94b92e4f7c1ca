"""Make the tiny checkpoint: `python -m scripts.tiny_models [--output DIR] [--seed N]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from scripts.tiny_models.build import build_checkpoint
from scripts.tiny_models.model import build_processor
from scripts.tiny_models.warmstart import warm_start
from vision_rl.errors import cli_errors
from vision_rl.tiny import checkpoint_dir


def main() -> None:
    """Parse the command line and build the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m scripts.tiny_models", description=__doc__)
    parser.add_argument("--output", type=Path, default=checkpoint_dir(), help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the training pictures")
    arguments = parser.parse_args()
    with cli_errors():
        build_checkpoint(arguments.output, arguments.seed, build_processor(), warm_start)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
