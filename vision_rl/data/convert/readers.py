"""Fuse what several readers drew on one picture: one box per finding and place.

Two boxes are the same finding if a one-to-one assignment pairs them with an IoU above `SAME`; a reader's own boxes are never
merged. `benchmarks/reader_fusion.py` has the figures against ensemble-boxes' weighted_boxes_fusion.
"""

from __future__ import annotations

from collections.abc import Sequence

from vision_rl.answers.boxes import Box, match

SAME = 0.1
"""Between readers, not detectors: two outlines of a small nodule often overlap by a fifth (RadVLM takes 0.1 as well)."""


def fuse(boxes: Sequence[tuple[Box, str, str]]) -> list[tuple[Box, str, int]]:
    """(mean box, label, number of its readers) per finding of (box, label, reader), in the order of the labels.

    The reader with most boxes of a label comes first; each other's are assigned to the means so far.
    """
    fused = []
    for label in dict.fromkeys(label for _, label, _ in boxes):
        by_reader: dict[str, list[Box]] = {}
        for box, other, reader in boxes:
            if other == label:
                by_reader.setdefault(reader, []).append(box)
        places: list[list[Box]] = []
        for own in sorted(by_reader.values(), key=len, reverse=True):
            pairs = {i: j for i, j, iou in match(own, [_mean(place) for place in places]) if iou > SAME}
            for index, box in enumerate(own):
                if index in pairs:
                    places[pairs[index]].append(box)
                else:
                    places.append([box])
        fused += [(_mean(place), label, len(place)) for place in places]
    return fused


def _mean(boxes: Sequence[Box]) -> Box:
    x1, y1, x2, y2 = (sum(numbers) / len(boxes) for numbers in zip(*boxes, strict=True))
    return x1, y1, x2, y2
