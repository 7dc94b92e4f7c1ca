"""The picture of the README: reward and validation of the two demos, and what the trained model answers.

python benchmarks/demo_figure.py runs/demo-vqa runs/demo-grounding -o docs/images/demo.png
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from vision_rl.answers.parsing import parse_boxes
from vision_rl.media.images import open_image
from vision_rl.run.log import METRICS, ROLLOUTS, read_jsonl


def curve(axes: Any, run_dir: Path, metric: str, title: str) -> None:
    lines, _ = read_jsonl(run_dir / METRICS)
    steps = [line for line in lines if "train/reward" in line]
    checks = [line for line in lines if f"val/{metric}" in line]
    axes.plot(
        [s["step"] for s in steps], [s["train/reward"] for s in steps], color="0.7", label="training reward (sampled)"
    )
    axes.plot(
        [s["step"] for s in checks], [s[f"val/{metric}"] for s in checks], "o-", label=f"validation {metric} (greedy)"
    )
    axes.set(title=title, xlabel="step", ylim=(0, 1))
    axes.legend(loc="lower right", fontsize=8)


def answer(axes: Any, rollout: dict[str, Any]) -> None:
    picture = open_image(rollout["image_paths"][0])
    axes.imshow(picture)
    axes.axis("off")
    reply = rollout["replies"][0]
    for box, color in [*((b, "lime") for b in rollout["boxes"]), *((b, "red") for b in parse_boxes(reply, "bbox"))]:
        x, y, right, bottom = (v * s for v, s in zip(box, picture.size * 2, strict=True))
        axes.add_patch(Rectangle((x, y), right - x, bottom - y, fill=False, edgecolor=color, linewidth=1.5))
    said = "" if rollout["boxes"] else f"{reply}: "
    caption = f"{textwrap.fill(rollout['question'], 24)}\n{said}reward {rollout['reward']['reward']:.2f}"
    axes.set_title(caption, fontsize=6.5)  # wrapped: the captions of neighbours must not run into each other


def last_validation(run_dir: Path, number: int) -> list[dict[str, Any]]:
    rollouts = [r for r in read_jsonl(run_dir / ROLLOUTS)[0] if r["mode"] == "val"]
    last = max(rollout["step"] for rollout in rollouts)
    return sorted((r for r in rollouts if r["step"] == last), key=lambda r: r["id"])[:number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vqa", type=Path)
    parser.add_argument("grounding", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    figure = plt.figure(figsize=(11, 5.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.5, 1], squeeze=False).flat
    left, right = top.subplots(1, 2)
    curve(left, args.vqa, "accuracy", "VQA")
    curve(right, args.grounding, "iou", "grounding (true box green, predicted red)")
    rollouts = [*last_validation(args.vqa, 4), *last_validation(args.grounding, 4)]
    for axes, rollout in zip(bottom.subplots(1, 8), rollouts, strict=True):
        answer(axes, rollout)
    figure.savefig(args.output, dpi=110)


if __name__ == "__main__":
    main()
