"""Environments: the agent acts in a browser, an emulator or a game, and sees pictures of it.

What a user writes is one class with gymnasium's words and one task:

    class Counter(Environment):
        def reset(self, *, seed, options): ...
        def step(self, action): ...

    TASK = Task(name="counter", environment=Environments(Counter, reader="click", turns=3))

What is done here: the loop over turns, the reading of actions (`vision_rl.answers.actions`), instances and their failures
(`vision_rl.agent.keeper`), the pictures that a prompt can hold, and what the rewards of the steps come to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

from vision_rl.agent.client import client_for, thinking, was_cut
from vision_rl.agent.keeper import Instance, Keeper, keeper_of
from vision_rl.agent.media import size_limits
from vision_rl.agent.messages import picture_url, reply_text, user_message
from vision_rl.answers.actions import READERS, Reader
from vision_rl.answers.coordinates import Size
from vision_rl.errors import UserError
from vision_rl.rewards.terms import with_terms
from vision_rl.settings import AgentSettings
from vision_rl.tasks import TURN_REWARD, episode_of
from vision_rl.types import LLM, Reward

NEXT = "This is how it looks now. Go on."
UNREAD = "No action could be read from that."
LEFT_OUT = "(An earlier picture is left out.)"
REWARDS = ("sum", "last", "turns")


_watched: ContextVar[list[tuple[Image.Image, str]] | None] = ContextVar("watched", default=None)


@contextmanager
def watched() -> Iterator[list[tuple[Image.Image, str]]]:
    """(picture, reply) of each turn of the episodes that are played inside the block, in this task of asyncio's."""
    seen: list[tuple[Image.Image, str]] = []
    token = _watched.set(seen)
    try:
        yield seen
    finally:
        _watched.reset(token)


class Observation(NamedTuple):
    """What an environment shows: the task, or what has changed, in words; and pictures (RGB), at least one at the start."""

    text: str
    pictures: Sequence[Image.Image] = ()


class Step(NamedTuple):
    """What became of an action. terminated: the episode came to its end. truncated: it was cut off, which is no failure of
    the model. components: figures by name; of each the last one counts, `success` (0 to 1) is what validation looks at."""

    observation: Observation
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    components: Mapping[str, float] = {}


class Environment:
    """The base of environments. All methods are called from one thread, `close` after a call that hangs from another."""

    def reset(self, *, seed: int, options: Mapping[str, Any]) -> Observation:
        """Begin an episode: the same seed and options are the same one, to the pixel. options: `env` and the row's own."""
        raise NotImplementedError

    def step(self, action: Any) -> Step:
        """Carry out what the reader made of a reply; never None."""
        raise NotImplementedError

    def last_step(self, action: Any) -> Step:
        """The same for the last reply that a rollout has turns for: its observation is not looked at."""
        return self.step(action)

    def out_of_turns(self) -> float:
        """What an episode earns beside its steps when a rollout has no turns left and it has not come to its end."""
        return 0.0

    def close(self) -> None:
        """Give everything back; also called when nothing was begun, or when a call hangs."""

    def repeats(self, options: Mapping[str, Any]) -> bool:
        """Whether an episode that was seen before can be restored without being looked at again."""
        return False

    def restore(self, *, seed: int, options: Mapping[str, Any]) -> None:
        """Begin an episode whose first observation is known already."""
        self.reset(seed=seed, options=options)

    def oracle(self, *, seed: int, options: Mapping[str, Any]) -> list[Any] | None:
        """Actions that solve the episode, if it can be known; `data_utils.py verify` plays them."""
        return None

    @staticmethod
    def of(name: str, *, prompt: str, actions: Sequence[str] = (), **settings: Any) -> Environments:
        """A gymnasium environment by its id: see `vision_rl.agent.gymnasium_env`."""
        from vision_rl.agent.gymnasium_env import environments

        return environments(name, prompt=prompt, actions=actions, **settings)


@dataclass(frozen=True)
class Environments:
    """How a task uses an environment.

    make: the class, or what makes one. reader: how replies become actions, a key of `READERS` or a `Reader`. turns: replies
    of one rollout at most (`agent.max_turns`). history: how many of the latest observations keep their pictures, or "all"
    that a prompt can hold. reward: "sum" of the steps' rewards, the "last" one, or "turns": their sum, placed at the turns
    that earned it where the advantage estimator looks there. instances: per process. seconds: the longest call of one.
    names: what `options["env"]` may be, where there are several.
    """

    make: Callable[[], Environment]
    reader: str | Reader = "click"
    turns: int = 1
    history: int | str = "all"
    reward: str = "sum"
    instances: int = 4
    seconds: float = 60.0
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.reader, str) and self.reader not in READERS:
            raise UserError(
                f"an environment's reader is {self.reader!r}; choose one of {', '.join(READERS)}, or give a Reader"
            )
        if self.reward not in REWARDS:
            raise UserError(f"an environment's reward is {self.reward!r}; choose one of {', '.join(REWARDS)}")
        if self.history != "all" and (not isinstance(self.history, int) or self.history < 1):
            raise UserError(
                f'an environment\'s history is {self.history!r}; give "all" or a number of observations above 0'
            )
        if self.turns < 1 or self.instances < 1:
            raise UserError("an environment needs at least one turn and one instance")

    @property
    def actions(self) -> Reader:
        """The reader itself."""
        return READERS[self.reader] if isinstance(self.reader, str) else self.reader

    def keeper(self) -> Keeper:
        """The instances of this process."""
        return keeper_of(self, self.make, self.instances, self.seconds)

    async def play(self, task: dict[str, Any], llm: LLM) -> tuple[str, Reward]:
        """Play one episode: (last reply, reward). Training, workers, evaluation and baselines call this.

        Raises `EnvironmentFailed` where the environment dies under the episode: the rollout may be tried again.
        """
        seed, options = episode_of(task)
        started = time.monotonic()
        async with self.keeper().episode(seed, options) as (instance, observation):
            return await _Episode(task, self, instance, observation, time.monotonic() - started).play(llm)


@dataclass
class _Episode:
    """The state of an episode between two replies."""

    task: Mapping[str, Any]
    setup: Environments
    instance: Instance
    seen: Observation
    spent: float
    messages: list[Any] = field(default_factory=list)
    sizes: list[list[Size]] = field(default_factory=list)  # of the pictures of each message of the user's
    rewards: list[float] = field(default_factory=list)
    components: dict[str, float] = field(default_factory=dict)
    unread: int = 0
    done: bool = False
    reply: str = ""
    cut: bool = False
    model_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.settings = AgentSettings.of(self.task)
        if (watching := _watched.get()) is not None:
            watching.clear()  # of an attempt before this one
        turns = self.task["meta"].get("turns")
        self.turns = min(self.settings.max_turns, turns) if isinstance(turns, int) else self.settings.max_turns

    async def play(self, llm: LLM) -> tuple[str, Reward]:
        client = client_for(llm, self.settings)
        parameters = {"max_tokens": self.settings.max_tokens, **thinking(self.task), **llm.sampling_parameters}
        how = self.setup.actions.ask(self.settings, self.picture.size)
        self._say(f"{self.seen.text}\n{how}", self.seen.pictures)
        for turn in range(self.turns):
            started = time.monotonic()
            completion = await client.chat.completions.create(model=llm.model, messages=self._shown(), **parameters)
            self.model_seconds += time.monotonic() - started
            self.cut = was_cut(completion)
            message = completion.choices[0].message.model_dump(exclude_none=True)
            self.reply = reply_text(message)
            self.messages.append({"role": "assistant", "content": self.reply})
            await self._act(how, last=turn + 1 == self.turns)
            if self.done:
                break
        else:
            self.rewards[-1] += float(await self.instance.call("out_of_turns"))
        return self.reply, self._reward()

    @property
    def picture(self) -> Image.Image:
        """The picture that actions are about: the last one seen."""
        return self.seen.pictures[-1]

    async def _act(self, how: str, last: bool) -> None:
        """Read the reply, carry its action out, and write the next message."""
        size = self.picture.size
        if (seen := _watched.get()) is not None:
            seen.append((self.picture, self.reply))
        action = self.setup.actions.read(self.reply, self.settings, size, size_limits(self.settings).processed(size))
        if action is None:
            self.unread += 1
            self.rewards.append(0.0)
            self._say(f"{UNREAD} {how}", ())
            return
        started = time.monotonic()
        step: Step = await self.instance.call("last_step" if last else "step", action)
        self.spent += time.monotonic() - started
        self.rewards.append(float(step.reward))
        self.components |= {name: float(value) for name, value in step.components.items()}
        self.components |= {
            "environment/terminated": float(step.terminated),
            "environment/truncated": float(step.truncated),
        }
        self.done = step.terminated or step.truncated
        if step.observation.pictures:
            self.seen = step.observation
        if not (self.done or last):
            self._say(step.observation.text or NEXT, step.observation.pictures)

    def _say(self, text: str, pictures: Sequence[Image.Image]) -> None:
        self.messages.append(user_message(text, [picture_url(picture) for picture in pictures]))
        self.sizes.append([picture.size for picture in pictures])

    def _shown(self) -> list[Any]:
        """The messages with the pictures of the latest observations, as many as `history` and the prompt's limits allow."""
        left = len(self.messages) if self.setup.history == "all" else int(self.setup.history)
        most, room = self.settings.max_images, self.settings.max_total_pixels
        limits, sizes = size_limits(self.settings), list(self.sizes)
        shown: list[Any] = []
        for message in reversed(self.messages):
            seen = [limits.processed(size) for size in sizes.pop()] if message["role"] == "user" else []
            if seen:
                left -= 1
                most = None if most is None else most - len(seen)
                room = None if room is None else room - sum(width * height for width, height in seen)
                newest = not any(part["role"] == "user" and len(part["content"]) > 1 for part in shown)
                if not newest and (left < 0 or (most is not None and most < 0) or (room is not None and room < 0)):
                    left = -1  # what lies before is left out too
                    message = user_message(f"{LEFT_OUT}\n{message['content'][-1]['text']}")
            shown.append(message)
        return shown[::-1]

    def _reward(self) -> Reward:
        total = sum(self.rewards)
        value = (self.rewards or [0.0])[-1] if self.setup.reward == "last" else total
        ended = self.components.get("environment/terminated", 0.0)
        prefix = TURN_REWARD if self.setup.reward == "turns" else "step_reward/"
        components = {
            "success": float(bool(ended) and total > 0),
            **self.components,
            "environment/return": total,
            "environment/steps": float(len(self.rewards) - self.unread),
            "seconds/environment": self.spent,
            "seconds/model": self.model_seconds,
            **{f"{prefix}{number}": reward for number, reward in enumerate(self.rewards, start=1)},
        }
        return with_terms(value, components, self.reply, not self.unread, self.settings.terms, truncated=self.cut)
