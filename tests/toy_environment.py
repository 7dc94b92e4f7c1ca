"""Environments for tests: a square to click on, whose place the seed decides; and what goes wrong with others."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageDraw

from vision_rl.agent.environment import Environment, Environments, Observation, Step
from vision_rl.answers.actions import Action
from vision_rl.tasks import Task

SIDE, SQUARE = 84, 28


class Squares(Environment):
    """Click the red square, `clicks` times: each hit is worth a share of 1, and moves it. options: clicks, and `fault`."""

    made = closed = resets = 0

    def __init__(self) -> None:
        type(self).made += 1

    def reset(self, *, seed: int, options: Mapping[str, Any]) -> Observation:
        type(self).resets += 1
        self.options, self.hits = options, 0
        self.random = random.Random(seed if options.get("fault") != "chance" else None)
        if options.get("fault") == "start" and type(self).made == 1:
            raise OSError("no display")
        self._move()
        return Observation("Click the red square.", [self._picture()])

    def step(self, action: Action) -> Step:
        fault = self.options.get("fault")
        if fault == "death":
            raise RuntimeError("the browser has ended")
        if fault == "hang":
            time.sleep(3)
        if fault == "exit":
            os._exit(9)
        assert action.point is not None
        x, y = (number * SIDE for number in action.point)
        hit = self.left <= x < self.left + SQUARE and self.top <= y < self.top + SQUARE
        clicks = self.options.get("clicks", 1)
        self.hits += hit
        self._move()
        return Step(
            Observation("", [self._picture()]),
            hit / clicks,
            terminated=self.hits == clicks,
            components={"hits": self.hits},
        )

    def oracle(self, *, seed: int, options: Mapping[str, Any]) -> list[Action] | None:
        self.reset(seed=seed, options=options)
        actions = []
        for _ in range(options.get("clicks", 1)):
            actions.append(Action("click", ((self.left + SQUARE / 2) / SIDE, (self.top + SQUARE / 2) / SIDE)))
            self._move()
        return actions

    def close(self) -> None:
        type(self).closed += 1

    def _move(self) -> None:
        self.left, self.top = (SQUARE * self.random.randrange(SIDE // SQUARE) for _ in range(2))

    def _picture(self) -> Image.Image:
        picture = Image.new("RGB", (SIDE, SIDE), (240, 240, 240))
        box = (self.left, self.top, self.left + SQUARE - 1, self.top + SQUARE - 1)
        ImageDraw.Draw(picture).rectangle(box, fill=(214, 40, 40))
        return picture


TASK = Task(name="squares", environment=Environments(Squares, reader="click", turns=3, seconds=20))
