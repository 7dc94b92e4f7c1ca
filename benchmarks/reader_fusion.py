"""Compare our fusion of several readers' boxes with ensemble-boxes' weighted_boxes_fusion.

Synthetic readers of synthetic findings: three readers see each finding with a chance of 85 % and draw its sides with an error
that grows with its size. Cases: single findings, small ones, neighbours (side by side, 20 % overlapping), nested ones (a mass in
an opacity of the same class). Printed per case and method, over 2,000 pictures in which all findings were drawn: the right
number of boxes, the mean matched IoU with the truth (`match_score`, which extra boxes cost), and what a reply with the true boxes
would earn where all readers' boxes were kept (union).

    pip install ensemble-boxes && python benchmarks/reader_fusion.py
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from ensemble_boxes import weighted_boxes_fusion

from vision_rl.answers.boxes import Box
from vision_rl.data.convert.readers import fuse
from vision_rl.rewards.grounding import match_score

READERS, PICTURES, SEEN = 3, 2000, 0.85
Reading = list[list[Box]]


def box_at(rng: random.Random, low: float, high: float) -> Box:
    width, height = rng.uniform(low, high), rng.uniform(low, high)
    x, y = rng.uniform(0.05, 0.9 - width), rng.uniform(0.05, 0.9 - height)
    return x, y, x + width, y + height


def neighbours(rng: random.Random, overlap: float) -> list[Box]:
    x1, y1, x2, y2 = box_at(rng, 0.1, 0.2)
    step = (x2 - x1) * (1 - overlap)
    return [(x1, y1, x2, y2), (x1 + step, y1, x2 + step, y2)]


def nested(rng: random.Random) -> list[Box]:
    x1, y1, x2, y2 = box_at(rng, 0.25, 0.4)
    return [(x1, y1, x2, y2), (x1 + 0.05, y1 + 0.05, x1 + 0.05 + 0.5 * (x2 - x1), y1 + 0.05 + 0.5 * (y2 - y1))]


CASES: dict[str, Callable[[random.Random], list[Box]]] = {
    "one": lambda rng: [box_at(rng, 0.15, 0.4)],
    "one, small": lambda rng: [box_at(rng, 0.02, 0.05)],
    "side by side": lambda rng: neighbours(rng, 0.0),
    "overlapping": lambda rng: neighbours(rng, 0.2),
    "nested": nested,
}


def drawn(rng: random.Random, truth: Sequence[Box]) -> tuple[Reading, int]:
    """What each reader draws: sides off by 12 % of the box's own, at least 0.5 % of the picture; how many were drawn by any."""
    readings: Reading = []
    seen = set()
    for _ in range(READERS):
        own: list[Box] = []
        for number, (x1, y1, x2, y2) in enumerate(truth):
            if rng.random() < SEEN:
                seen.add(number)
                dx, dy = max(0.12 * (x2 - x1), 0.005), max(0.12 * (y2 - y1), 0.005)
                a, b, c, d = (rng.gauss(v, s) for v, s in ((x1, dx), (y1, dy), (x2, dx), (y2, dy)))
                own.append((max(a, 0), max(b, 0), min(max(c, a + 0.005), 1), min(max(d, b + 0.005), 1)))
        readings.append(own)
    return readings, len(seen)


def ours(readings: Reading) -> list[Box]:
    return [box for box, _, _ in fuse([(box, "x", str(reader)) for reader, own in enumerate(readings) for box in own])]


def wbf(iou: float) -> Callable[[Reading], list[Box]]:
    def fused(readings: Reading) -> list[Box]:
        ones = [[1] * len(own) for own in readings]
        boxes, _, _ = weighted_boxes_fusion(readings, ones, ones, iou_thr=iou)
        return [(float(a), float(b), float(c), float(d)) for a, b, c, d in boxes]

    return fused


METHODS = {
    "ours": ours,
    "WBF 0.1": wbf(0.1),
    "WBF 0.3": wbf(0.3),
    "WBF 0.55": wbf(0.55),
    "union": lambda readings: [box for own in readings for box in own],
}


def main() -> None:
    print("| case | " + " | ".join(f"{name}: right number | IoU" for name in METHODS) + " |")
    print("|---|" + "---|---|" * len(METHODS))
    for case, make in CASES.items():
        rng, sums = random.Random(0), {name: [0.0, 0.0] for name in METHODS}
        count = 0
        while count < PICTURES:
            truth = make(rng)
            readings, seen = drawn(rng, truth)
            if seen < len(truth):
                continue
            count += 1
            for name, method in METHODS.items():
                boxes = method(readings)
                sums[name][0] += len(boxes) == len(truth)
                sums[name][1] += match_score(boxes, truth, "iou")
        cells = [f"{100 * right / PICTURES:.0f} % | {iou / PICTURES:.3f}" for right, iou in sums.values()]
        print(f"| {case} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
