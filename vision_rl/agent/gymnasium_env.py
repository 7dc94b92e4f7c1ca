"""Environments of gymnasium by id: MiniGrid, Atari (ale-py), VizDoom, and any other that is registered there.

    TASK = Task(
        name="doors",
        environment=Environment.of(
            "MiniGrid-DoorKey-5x5-v0", package="minigrid", prompt="You are the red triangle. {mission}",
            actions=("left", "right", "forward", "pickup", "drop", "toggle", "done"), turns=20,
        ),
    )

The picture is what `render_mode="rgb_array"` draws, or the observation's own `screenshot` where it has one (BrowserGym).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vision_rl.agent.environment import Environment, Environments, Observation, Step
from vision_rl.answers.actions import Reader, words
from vision_rl.errors import UserError


class GymnasiumEnvironment(Environment):
    """One environment of gymnasium; it is made at the first reset. convert: from what the reader read to its action."""

    def __init__(
        self, name: str, prompt: str, package: str, convert: Callable[[Any], Any] | None, settings: Mapping[str, Any]
    ) -> None:
        self.name, self.prompt, self.package = name, prompt, package
        self.convert, self.settings = convert, dict(settings)
        self._made: Any = None

    def reset(self, *, seed: int, options: Mapping[str, Any]) -> Observation:
        """Begin an episode; a row's `env` option takes the place of the id. Raises `UserError` for one that is unknown."""
        name = str(options.get("env", self.name))
        if self._made is None or self._made.spec.id != name:
            self.close()
            self._made = self._make(name)
        seen, info = self._made.reset(seed=seed)
        return Observation(self._text(seen, info), [self._picture(seen)])

    def step(self, action: Any) -> Step:
        """One step; reward and both ends are gymnasium's."""
        seen, reward, terminated, truncated, _ = self._made.step(self.convert(action) if self.convert else action)
        return Step(Observation("", [self._picture(seen)]), float(reward), bool(terminated), bool(truncated))

    def close(self) -> None:
        """Close it, if it was made."""
        if self._made is not None:
            self._made.close()
        self._made = None

    def _make(self, name: str) -> Any:
        try:
            import gymnasium

            if self.package:
                importlib.import_module(self.package)
        except ImportError as error:
            raise UserError(f"{name} needs a package that is not installed ({error}); pip install it") from error
        try:
            settings = {"render_mode": "rgb_array", **self.settings}
            return gymnasium.make(name, **{key: value for key, value in settings.items() if value is not None})
        except gymnasium.error.Error as error:
            raise UserError(
                f"gymnasium cannot make {name!r} ({error}); name the package that registers it, as package=..."
            ) from error

    def _text(self, seen: Any, info: Mapping[str, Any]) -> str:
        """The prompt, its {fields} filled in with the texts of the observation and of what comes beside it."""
        fields = {**info, **(seen if isinstance(seen, Mapping) else {})}
        try:
            return self.prompt.format_map({name: value for name, value in fields.items() if isinstance(value, str)})
        except (KeyError, ValueError, IndexError) as error:
            texts = sorted(name for name, value in fields.items() if isinstance(value, str))
            raise UserError(f"the prompt of {self.name} cannot be filled in ({error}); there are {texts}") from error

    def _picture(self, seen: Any) -> Image.Image:
        shown = seen.get("screenshot") if isinstance(seen, Mapping) else None
        return Image.fromarray(np.asarray(self._made.render() if shown is None else shown)).convert("RGB")


def environments(
    name: str,
    *,
    prompt: str,
    actions: Sequence[str] = (),
    package: str = "",
    convert: Callable[[Any], Any] | None = None,
    reader: str | Reader = "",
    make: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Environments:
    """`Environments` of a gymnasium id.

    actions: the words for the actions 0, 1, ... of its discrete space; or else `reader`, with `convert` where what it reads is
    not yet the environment's action. package: what must be imported for the id to be known. make: arguments of
    `gymnasium.make`; render_mode is None where an environment takes none (BrowserGym). settings: those of `Environments`.
    """
    if bool(actions) == bool(reader):
        raise UserError(f"{name}: give the words of its `actions`, or a `reader`")
    made = functools.partial(GymnasiumEnvironment, name, prompt, package, convert, make or {})
    return Environments(made, reader=reader or words(actions), **settings)
