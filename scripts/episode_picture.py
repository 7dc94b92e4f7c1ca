"""Draw two episodes of a run as a picture: `python scripts/episode_picture.py RUN [--output docs/images/episodes.png]`.

The first is one that failed at the first validation, the second the same episode at the last one, where it succeeded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from vision_rl.agent.replay import episode_strip, is_played
from vision_rl.errors import UserError, cli_errors
from vision_rl.run.log import ROLLOUTS, read_jsonl
from vision_rl.run.reader import read_run

GAP = 10


def picture_of(run_dir: Path) -> tuple[Image.Image, str]:
    """(the strips below each other, the episode's id). Raises `UserError` where no episode was learnt."""
    settings = read_run(run_dir).settings
    records = [one for one in read_jsonl(run_dir / ROLLOUTS)[0] if one["mode"] == "val" and is_played(one)]
    steps = sorted({one["step"] for one in records})
    before, after = (
        {one["id"]: one for one in records if one["step"] == step} for step in (steps[:1] + steps[-1:])[:2]
    )
    learnt = [
        name
        for name, one in before.items()
        if name in after and not one["reward"].get("success") and after[name]["reward"].get("success")
    ]
    if not learnt:
        raise UserError(f"{run_dir}: no episode failed at the first validation and succeeded at the last")
    name = max(learnt, key=lambda each: len(after[each]["replies"]))
    strips = [episode_strip(run_dir, records[name], settings) for records in (before, after)]
    whole = Image.new("RGB", (max(one.width for one in strips), sum(one.height for one in strips) + GAP), "white")
    whole.paste(strips[0], (0, 0))
    whole.paste(strips[1], (0, strips[0].height + GAP))
    return whole, name


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--output", type=Path, default=Path("docs/images/episodes.png"))
    args = parser.parse_args()
    with cli_errors():
        whole, name = picture_of(args.run)
        whole.save(args.output)
        print(f"{args.output}: {name}, before and after")


if __name__ == "__main__":
    main()
