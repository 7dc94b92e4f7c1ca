"""Measure how many VQA and grounding answers one core scores per second: `python benchmarks/reward_speed.py`.

Each workload is a few thousand different replies, so that no cache can know them all, and the best of several rounds
counts. The goal is 20,000 a second; the exit code says whether every workload reached `--goal`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable

from vision_rl.answers.space import AnswerSpace
from vision_rl.rewards import grounding_reward, vqa_reward

WORDS = ["yes", "no", "red", "blue", "black", "two", "three", "cat", "dog", "table", "can't", "t-shirt", "1,000"]
THOUGHT = "<think>The image shows a desk with a lamp; the button that was named stands in the upper corner.</think>\n"
SIZES = {"original_size": (1920, 1080), "processed_size": (1932, 1092)}


def _vqa(generator: random.Random, thought: str, kind: str) -> Callable[[], object]:
    humans = tuple(generator.choices(WORDS, k=3))
    answers = [generator.choice(humans) for _ in range(10)]
    words = generator.choices(WORDS, k=generator.choice([1, 1, 1, 2, 4]))
    reply = thought + " ".join(words) + generator.choice(["", "."])
    return lambda: vqa_reward(reply, answers, kind=kind)


def _box(generator: random.Random) -> tuple[float, float, float, float]:
    x, y = generator.uniform(0, 0.9), generator.uniform(0, 0.9)
    return x, y, generator.uniform(x + 0.05, 1), generator.uniform(y + 0.05, 1)


def _grounding(
    generator: random.Random, thought: str, kind: str, n: int, answer_format: str, family: str
) -> Callable[[], object]:
    true = [_box(generator) for _ in range(n)]
    predicted = [_box(generator) for _ in range(n)]
    space = AnswerSpace(answer_format, family, **SIZES)
    reply = thought + space.write(predicted)
    return lambda: grounding_reward(reply, true, space, kind=kind)


WORKLOADS: dict[str, Callable[[random.Random], Callable[[], object]]] = {
    "VQA, accuracy": lambda g: _vqa(g, "", "vqa"),
    "VQA, accuracy, with reasoning": lambda g: _vqa(g, THOUGHT, "vqa"),
    "VQA, similarity": lambda g: _vqa(g, "", "similarity"),
    "grounding, iou, 1 box": lambda g: _grounding(g, "", "iou", 1, "bbox", "unit"),
    "grounding, iou, 1 box, with reasoning": lambda g: _grounding(g, THOUGHT, "iou", 1, "bbox", "unit"),
    "grounding, gaussian, 1 box": lambda g: _grounding(g, "", "gaussian", 1, "bbox", "unit"),
    "grounding, ciou, 1 box, Qwen2.5-VL JSON": lambda g: _grounding(g, "", "ciou", 1, "native", "qwen2_5_vl"),
    "grounding, arc, 1 box": lambda g: _grounding(g, "", "arc", 1, "bbox", "unit"),
}
REPORTED_ONLY = {"grounding, iou, 5 boxes (Hungarian matching)": lambda g: _grounding(g, "", "iou", 5, "bbox", "unit")}


def rate(build: Callable[[random.Random], Callable[[], object]], cases: int, rounds: int) -> float:
    """Calls per second of processor time, the best of several rounds over the same cases."""
    generator = random.Random(0)
    calls = [build(generator) for _ in range(cases)]
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for call in calls:
            call()
        best = min(best, time.process_time() - start)
    return cases / best


def main() -> int:
    """Print the table; 1 if a workload misses the goal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=5000, help="different replies per workload")
    parser.add_argument("--rounds", type=int, default=5, help="rounds over them, of which the best counts")
    parser.add_argument("--goal", type=float, default=20_000, help="answers per second that every workload must reach")
    args = parser.parse_args()
    missed = 0
    print("| workload | answers / second |\n| --- | --- |")
    for name, build in (WORKLOADS | REPORTED_ONLY).items():
        reached = rate(build, args.cases, args.rounds)
        missed += name in WORKLOADS and reached < args.goal
        print(f"| {name} | {reached:,.0f} |", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
