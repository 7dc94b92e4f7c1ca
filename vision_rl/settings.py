"""The settings of this project, as frozen dataclasses; verl's own stand in its configuration.

verl's settings stay verl's (see `vision_rl.config.resolve`). In YAML and in `key=value` overrides ours live under two
roots that verl does not use: `agent.*` (what a rollout needs; it travels with every task) and `app.*` (what the trainer
needs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

T = TypeVar("T")

TOKEN_VARIABLE = "VISION_RL_TOKEN"
"""Environment variable with the token of this run's own store and proxy, where they have one."""


@dataclass(frozen=True)
class Range:
    """low and high belong to the range unless `above` (low does not) or `below` (high does not)."""

    low: float
    high: float | None = None
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` lies within; NaN does not."""
        over = value > self.low if self.above else value >= self.low
        return over and (self.high is None or (value < self.high if self.below else value <= self.high))

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        if self.high is None:
            return low
        return f"{low} and {'below' if self.below else 'at most'} {self.high:g}"


POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
SHARE = Range(0, 1)
PART = Range(0, 1, above=True)


def within(default: T, allowed: Range) -> T:
    """A field whose value must lie in a range; `vision_rl.config.ranges` checks it."""
    made: T = field(default=default, metadata={"range": allowed})
    return made


@dataclass(frozen=True)
class Terms:
    """Prices that are taken off a task reward.

    format_price: for a reply that is not in the format that was asked for.
    length_price: for a reply (reasoning included) of `limit_chars` characters or more; nothing up to `free_chars`,
    linear between the two. A price on length is what the group needs to prefer the shorter of two right answers.
    truncated_price: for a reply that the length limit cut off, or a policy could write on without end behind its answer.
    """

    format_price: float = 0.1
    length_price: float = 0.2
    free_chars: int = 2000
    limit_chars: int = 8000
    truncated_price: float = 0.1

    def length(self, chars: int) -> float:
        """The length term, from 0 down to -length_price."""
        if chars <= self.free_chars:
            return 0.0
        return -self.length_price * min(1.0, (chars - self.free_chars) / max(1, self.limit_chars - self.free_chars))

    def format(self, ok: bool) -> float:
        """The format term: 0, or -format_price."""
        return 0.0 if ok else -self.format_price


@dataclass(frozen=True)
class ArcWeights:
    """All numbers of Arc Vision's reward. Areas and distances are shares of the image; gate entries are negative."""

    task: float = 0.6
    tool: float = 0.3
    gate: float = 0.1

    small_area: float = 0.05  # a target with less area is small
    edge: float = 0.1  # a target that comes nearer to a border than this is at the edge
    bonus_small: float = 0.4  # times IoU, if a tool was called on a small target
    bonus_edge: float = 0.2  # times IoU, on one at the edge
    bonus_easy: float = 0.1  # times IoU, on any other
    bonus_without: float = 0.1  # for no tool at all, on a target that is not small, if IoU > without_iou
    without_iou: float = 0.7
    right_iou: float = 0.5  # no bonus for tools below this IoU
    aimed_only: bool = True  # a call counts for the bonus only if its region holds the target's centre
    needed_only: bool = True  # a tool earns nothing on an easy target, so that doing without pays more

    missed: float = -0.3  # small target, no tool, IoU < missed_iou
    missed_iou: float = 0.5
    needless: float = -0.25  # easy target and more than one call
    wait_only: float = -0.05  # small target, waited but not zoomed
    excess: float = -0.4  # more than max_calls calls
    max_calls: int = 2
    per_extra_call: float = 0.0  # further, for each call after the first excessive one; the gate stays above -2


DEFAULT_TERMS, DEFAULT_WEIGHTS = Terms(), ArcWeights()


@dataclass(frozen=True)
class JudgeSettings:
    """What `agent.reward=judge` shows its judge, beside question, references and answer."""

    pictures: bool = False  # the row's own pictures too, by agent.image_transport; the judge must take pictures


@dataclass(frozen=True)
class AgentSettings:
    """What an agent must know to run one rollout; `asdict()` of it is the `settings` entry of every task.

    min_pixels and max_pixels limit the area of an image in pixels; None leaves the limits of the model's own processor.
    """

    answer_format: str = "bbox"  # grounding: a row of vision_rl.answers.formats.FORMATS, or "native" (the family's own)
    refusal: bool = True  # grounding: the prompt says how to answer that there is nothing to find
    family: str = "unit"  # a row of vision_rl.answers.coordinates.FAMILIES, filled in from the model
    min_pixels: int | None = None
    max_pixels: int | None = None
    reward: str = "vqa"  # one of the task's rewards; docs/rewards.md lists them
    image_transport: str = "file"  # "file": file:// paths, one machine or a shared disk; "data": data: URIs
    video: str = "frames"  # how questions about a video show it: as pictures, or "native", as the family's own video
    max_tokens: int = 512
    timeout_seconds: float = 120.0
    max_turns: int = within(1, COUNT)  # replies of the model in a rollout; more than one needs tools or an environment
    max_tool_calls: int = 0  # 0: the agent has no tools
    tool_protocol: str = "text"  # "text": <tool_call> in the reply; "function": OpenAI's function tools
    structured_output: str = "refuse"  # of a rollout's response_format and forced tool_choice; "prompt": in words
    answer_view: str = "original"  # with tools, whose space answers are in: the first picture's, or the "last" one's
    max_images: int | None = None  # per conversation, those of tools included; None: app.images_per_prompt
    max_total_pixels: int | None = None  # of all pictures of a conversation as the model sees them; None: no limit
    terms: Terms = field(default_factory=Terms)  # what every reward takes off: format, length, truncation
    arc: ArcWeights = field(default_factory=ArcWeights)  # the numbers of agent.reward=arc
    judge: JudgeSettings = field(default_factory=JudgeSettings)  # of agent.reward=judge

    @classmethod
    def of(cls, task: Mapping[str, Any]) -> Self:
        """The settings of a task, its `settings` entry: a dict, as it has travelled as JSON."""
        return cls.read(task["settings"])

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """The settings of a dict that `asdict` made; what it lacks has its default."""
        parts = {"terms": Terms, "arc": ArcWeights, "judge": JudgeSettings}
        return cls(**dict(given) | {name: part(**given[name]) for name, part in parts.items() if given.get(name)})

    def pixel_limits(self) -> dict[str, int]:
        """What server and actor give the processor, by its names (`mm_processor_kwargs` is set by `config/derived.py`)."""
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return {name: value for name, value in limits.items() if value is not None}


@dataclass(frozen=True)
class RolloutPolicy:
    """How long a rollout may take and how often it is tried; a rollout that fails for good is dropped and counted."""

    timeout_seconds: float = 600.0
    unresponsive_seconds: float = (
        300.0  # must exceed agent.timeout_seconds, or a slow answer is taken for a dead runner
    )
    max_attempts: int = within(2, COUNT)
    span_deadline_seconds: float = 10.0  # how long to wait for late spans of a finished rollout
    poll_seconds: float = 0.1  # for the ends of rollouts 0.1 at most: Agent Lightning's client refuses to wait longer


@dataclass(frozen=True)
class Validation:
    """The fixed validation sample, the metric that names the best checkpoint, and early stopping."""

    samples: int = within(60, NOT_NEGATIVE)  # 0: all of them
    seed: int = within(0, NOT_NEGATIVE)
    metric: str = "val/reward"
    maximize: bool = True
    patience: int = within(0, NOT_NEGATIVE)  # validations without improvement before the run stops; 0: never
    min_delta: float = 0.0


@dataclass(frozen=True)
class Checkpoints:
    """Which checkpoints stay on disk."""

    keep_last: int = within(2, COUNT)
    keep_best: bool = True


@dataclass(frozen=True)
class Integrity:
    """Limits at which a run stops instead of training on wrong data.

    The two log-probability limits are on |actor - rollout| per response token, in nats; None switches that limit off.
    """

    logprob_mismatch_max: float | None = None
    logprob_mismatch_mean: float | None = 0.1
    group_pictures: float | None = 0.1  # share of a step's groups whose rollouts may begin with different pictures
    drop_rate: float = 0.25  # share of a step's samples that may be dropped (failed, cut image, inconsistent)


@dataclass(frozen=True)
class Sight:
    """The sight gauge: how far the actor's log-probabilities move when its pictures are black, and when that is too little.

    A check is left out while all of them together have taken more than `time` of the run since its first step.
    """

    every: int = within(5, NOT_NEGATIVE)  # steps from check to check, after one in the first step; 0: none
    rows: float = within(0.125, PART)  # share of a step's rows, of those with pictures, that a check computes again
    time: float = within(0.03, PART)  # at most this share of the run's time, from its first step on, is spent on checks
    min_kl: float | None = within(0.001, POSITIVE)  # nats a token, seeing against blind; less ends the run; null: never
    patience: int = within(3, COUNT)  # so many checks in a row
    val_rows: int = within(16, NOT_NEGATIVE)  # validation rows that are asked again with black pictures; 0: none


@dataclass(frozen=True)
class Papo:
    """PAPO's terms in the loss (vision_rl/actor/papo.py). kl_coef 0: none of them, and no second forward pass."""

    kl_coef: float = within(0.0, NOT_NEGATIVE)  # gamma: what a nat between seeing and masked is worth
    entropy_coef: float = within(0.03, NOT_NEGATIVE)  # eta: what a nat of entropy costs, seeing and masked
    mask_ratio: float = within(0.6, PART)  # share of a picture's squares of 14 pixels that are black


@dataclass(frozen=True)
class FilterGroups:
    """Dynamic sampling: groups whose rewards are all equal carry no gradient; they are drawn anew max_rounds times."""

    enable: bool = False
    max_rounds: int = 4


@dataclass(frozen=True)
class CollapseWatch:
    """Thresholds of the collapse watch; each alarm is a comparison against the run's own early steps or peak."""

    action: str = "warn"  # "warn" | "stop" | "restore_best"
    persist_steps: int = within(3, COUNT)  # steps that an alarm must last before `action` is taken
    window: int = within(5, COUNT)  # steps of the moving average
    reward_drop: float = within(0.5, SHARE)  # share of the peak reward that is lost
    length_growth: float = 0.15  # relative to the first window
    entropy_drop: float = within(0.8, SHARE)  # share of the first window's entropy that is gone
    kl: float = 1.0  # nats per token against the reference
    equal_groups: float = within(0.8, SHARE)  # share of groups without spread
    format_failures: float = within(0.5, SHARE)  # share of answers that do not parse
    wrong_space: float = within(0.2, SHARE)  # share of boxes in another coordinate space
    refusals: float = within(0.95, SHARE)  # share of replies that see nothing, of those to rows with something to find
    overconfidence: float = within(0.4, SHARE)  # mean stated confidence minus mean reward


@dataclass(frozen=True)
class AppSettings:
    """Everything else that the trainer reads and verl does not know."""

    imports: list[str] = field(default_factory=list)  # modules of the user's own, imported where the trainer lives
    n_runners: int = within(4, NOT_NEGATIVE)
    max_train_samples: int = 0  # 0: all rows
    images_per_prompt: int = within(4, COUNT)  # upper limit for vLLM; images that tools return count too
    gpu_memory_gb: float = 80.0  # of one GPU that the preset is meant for: what --plan compares with
    shared_prompt: bool | None = (
        None  # a group's prompt is computed once in the actor; null: on CPUs, where it is proven
    )
    blank_pixels: bool = False  # control experiment: the actor is shown black pictures
    rollouts: RolloutPolicy = field(default_factory=RolloutPolicy)
    validation: Validation = field(default_factory=Validation)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    integrity: Integrity = field(default_factory=Integrity)
    sight: Sight = field(default_factory=Sight)
    papo: Papo = field(default_factory=Papo)
    filter_groups: FilterGroups = field(default_factory=FilterGroups)
    collapse: CollapseWatch = field(default_factory=CollapseWatch)
