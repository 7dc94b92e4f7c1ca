"""Make the tiny checkpoint: `python -m vision_rl.tiny [--output DIR] [--seed N]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from vision_rl.errors import cli_errors
from vision_rl.tiny import checkpoint_dir
from vision_rl.tiny.build import build_checkpoint
from vision_rl.tiny.model import build_processor
from vision_rl.tiny.warmstart import warm_start


def main() -> None:
    """Parse the command line and build the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m vision_rl.tiny", description=__doc__)
    parser.add_argument("--output", type=Path, default=checkpoint_dir(), help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the training pictures")
    arguments = parser.parse_args()
    with cli_errors():
        build_checkpoint(arguments.output, arguments.seed, build_processor(), warm_start)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
