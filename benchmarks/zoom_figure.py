"""Draw the figure of docs/tools.md from a run of the tool-using tiny model.

python benchmarks/zoom_figure.py runs/zoom -o docs/images/zoom.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from vision_rl.agent.replay import answer_boxes, pictures_of, views_of
from vision_rl.answers.boxes import Box
from vision_rl.answers.zoom import View
from vision_rl.run.log import METRICS, ROLLOUTS, read_jsonl
from vision_rl.run.reader import read_run

SIZES = {"small": "#d6246e", "large": "#2f6fdb"}
TRUE, ANSWER, ZOOMED = "#18a558", "#2f6fdb", "#e07b00"


def curves(axes: Axes, lines: list[dict[str, Any]]) -> None:
    """How often it zooms while it samples, by target size."""
    for size, colour in SIZES.items():
        name = f"train/tools/use_rate_{size}"
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), color=colour, label=f"{size} targets")
    axes.set(title="zooms, share of rollouts", xlabel="step", ylim=(-0.03, 1.03))
    axes.legend(frameon=False, loc="lower left")


def screen(axes: Axes, picture: Image.Image, view: View, title: str, marks: list[tuple[str, list[Box]]]) -> None:
    """A picture at the size at which the model saw it, with boxes of the first picture's unit space."""
    axes.imshow(picture.resize(view.size, Image.Resampling.BICUBIC), interpolation="nearest")
    for colour, boxes in marks:
        for x1, y1, x2, y2 in map(view.from_picture, boxes):
            corner, sides = (x1 * view.size[0], y1 * view.size[1]), ((x2 - x1) * view.size[0], (y2 - y1) * view.size[1])
            axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=colour, linewidth=2))
    axes.set_title(title)
    axes.set_axis_off()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    rollouts = [line for line in read_jsonl(args.run / ROLLOUTS)[0] if line["mode"] == "val" and line["step"]]
    talk = next(r for r in reversed(rollouts) if len(r["replies"]) == 2 and r["reward"]["point"] == 1.0)
    settings = read_run(args.run).settings
    pictures = pictures_of(args.run, talk)
    views = views_of(talk, settings, pictures)
    answer = (ANSWER, answer_boxes(talk, settings, views))
    figure = Figure(figsize=(11, 3.6), layout="constrained", dpi=100)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    curves(left, read_jsonl(args.run / METRICS)[0])
    first, second = views
    true = [(box[0], box[1], box[2], box[3]) for box in talk["boxes"]]
    screen(middle, pictures[0], first, "the first look, and where it zooms", [(TRUE, true), (ZOOMED, [second.box])])
    screen(right, pictures[1], second, "the zoomed view, and its answer", [answer])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output)


if __name__ == "__main__":
    main()
