"""The collapse watch reads every step's metrics and says when a run goes wrong, since when, and what cures it.

Signs as in the Arc Vision report: a reward that falls after its peak, replies that grow, entropy that vanishes,
distance to the reference, groups without spread, replies that do not parse or use another coordinate space, confidence
without results, and actor and rollout that drift apart. Each looks at moving averages over `window` steps. Excused are
replies that grew with the reward, and lost entropy or equal groups once the task is solved, or half of it.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from vision_rl.settings import CollapseWatch

REWARD, LENGTH, ENTROPY = "train/reward", "train/response_length", "actor/entropy"
KL, EQUAL, FORMAT = "train/kl", "train/groups_equal", "train/format/ok"
SPACE, CONFIDENCE, MISMATCH = "train/format/wrong_space", "train/confidence", "mismatch/logprob_mean"
REFUSED = "train/boxes/refused"

NOISE = 4.0
"""A change of an average counts if it is this many standard errors wide; steps of a small batch differ by chance."""
SOLVED = 0.9
"""From this mean reward on, little entropy and equal groups mean that the task is learnt."""
MISMATCH_GROWTH = 4.0
MISMATCH_FLOOR = 0.01
"""Nats. Growth below it is rounding: bfloat16 actors differ from vLLM by about 0.01, float32 ones by 1e-6."""


@dataclass(frozen=True)
class Remedy:
    """The usual cause of an alarm, and its cures, the first to try first."""

    cause: str
    cures: tuple[str, ...]


REMEDIES: dict[str, Remedy] = {
    "reward falls": Remedy(
        "steps too large for a small, noisy batch",
        (
            "go back to the best checkpoint (app.collapse.action=restore_best)",
            "halve actor_rollout_ref.actor.optim.lr and warm it up",
            "hold on to the reference: --variant kl_strong (actor_rollout_ref.actor.kl_loss_coef=0.04)",
            "larger data.train_batch_size or actor_rollout_ref.rollout.n for a steadier gradient",
        ),
    ),
    "replies grow": Remedy(
        "GRPO's mean over each reply's tokens favours long wrong replies; or hope for partial rewards",
        (
            "--variant dr_grpo",
            "lower agent.max_tokens, so that long replies end without a reward",
            "read the longest replies in the report: repetition, or lists of answers?",
        ),
    ),
    "entropy vanishes": Remedy(
        "nothing is left to explore: every reply of a group is the same",
        (
            "--variant clip_higher (actor_rollout_ref.actor.clip_ratio_high=0.28)",
            "a small actor_rollout_ref.actor.entropy_coeff (0.001)",
            "halve the learning rate; sample at temperature 1.0",
        ),
    ),
    "far from reference": Remedy(
        "too many or too large steps",
        ("raise actor_rollout_ref.actor.kl_loss_coef (--variant kl_strong)", "halve the learning rate"),
    ),
    "equal groups": Remedy(
        "rows that are all right (too easy) or all wrong (too hard)",
        (
            "--variant filter_groups draws such groups anew",
            "raise actor_rollout_ref.rollout.n",
            "all wrong: easier rows, a denser reward (agent.reward=giou, similarity); all right: harder rows",
        ),
    ),
    "format fails": Remedy(
        "the prompt does not show the format, or replies are cut off",
        (
            "show the format in the prompt, with an example",
            "check agent.answer_format against what the replies in rollouts.jsonl look like",
            "raise agent.max_tokens if replies are cut off before the answer (train/responses_truncated)",
        ),
    ),
    "wrong space": Remedy(
        "the prompt asks for another space than the model was trained to write",
        (
            "agent.answer_format=native lets the model answer in the space it was trained on",
            "state the space in the prompt: fractions from 0 to 1, not pixels",
            "check agent.family: it decides how native numbers are read",
        ),
    ),
    "always refuses": Remedy(
        "most rows of the data have nothing to find, so that saying so pays without looking",
        (
            "convert with --empty share=0.1: fewer such rows",
            '--question "Locate the {label}.": a smaller target, asked for by name',
            "a denser reward: agent.reward=giou",
        ),
    ),
    "overconfident": Remedy(
        "stated confidence costs nothing when it is wrong",
        (
            "leave the confidence out of the prompt, or price it in the reward (Brier score)",
            "see the calibration table of evaluate_agent.py before anybody trusts the number",
        ),
    ),
    "actor and rollout drift": Remedy(
        "a server with old weights or old vision embeddings, or another precision than the actor's",
        (
            "a server that you update by yourself: empty its prefix, processor and encoder cache after each update (verl does "
            "so for those of a run, where all three stay on)",
            "the same dtype on both sides: actor_rollout_ref.rollout.dtype and "
            "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype",
            "--variant freeze_vision, if the drift began with a trained vision tower; see docs/troubleshooting.md, "
            "log-probability mismatch",
        ),
    ),
}
"""By the alarms' names. docs/troubleshooting.md's table is made from this (`python -m tests.collapse_page`)."""


@dataclass(frozen=True)
class Alarm:
    """Something that goes wrong. seen: the numbers; since: the first step at which it held; metric: where to look.

    persistent: it has lasted for `persist_steps` steps, the time to act.
    """

    name: str
    seen: str
    since: int
    metric: str
    cures: tuple[str, ...]
    persistent: bool


@dataclass(frozen=True)
class Episode:
    """An alarm from its first to its last step, both inclusive, as a report shows it."""

    alarm: Alarm
    until: int


class CollapseWatcher:
    """Feed it every training step's metrics in order. Pure: no files, no clock; the same steps give the same alarms."""

    def __init__(self, settings: CollapseWatch) -> None:
        self.settings = settings
        self.active: dict[str, Alarm] = {}
        """Alarms that hold at the last step, by name."""
        self._values: dict[str, list[float]] = {}
        self._peak, self._peak_step = -math.inf, 0

    def update(self, step: int, metrics: Mapping[str, Any]) -> list[Alarm]:
        """The alarms to tell now: those that begin at this step, and again those that have become persistent.

        Lines without a training reward (validation only) and values that are None or not finite are passed over.
        """
        if not _finite(metrics.get(REWARD)):
            return []
        names = (REWARD, LENGTH, ENTROPY, KL, EQUAL, FORMAT, SPACE, CONFIDENCE, MISMATCH, REFUSED)
        for name in names:
            if _finite(metrics.get(name)):
                self._values.setdefault(name, []).append(float(metrics[name]))
        reward = self._mean(REWARD)
        if reward is not None and reward > self._peak:
            self._peak, self._peak_step = reward, step
        seen = {name: (metric, text) for name, metric, text in self._signs(metrics) if text}
        new = []
        for name in list(self.active):
            if name not in seen:
                del self.active[name]
        for name, (metric, text) in seen.items():
            before = self.active.get(name)
            since = before.since if before else step
            persistent = step - since + 1 >= self.settings.persist_steps
            alarm = self.active[name] = Alarm(name, text, since, metric, REMEDIES[name].cures, persistent)
            if before is None or (persistent and not before.persistent):
                new.append(alarm)
        return new

    def _signs(self, metrics: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
        """(alarm, metric, what was seen or "") of every rule; rules whose metric is not in this line are silent."""
        rules = (
            ("reward falls", REWARD, self._reward_falls),
            ("replies grow", LENGTH, self._replies_grow),
            ("entropy vanishes", ENTROPY, self._entropy_vanishes),
            ("far from reference", KL, self._far_from_reference),
            ("equal groups", EQUAL, self._equal_groups),
            ("format fails", FORMAT, self._format_fails),
            ("wrong space", SPACE, self._wrong_space),
            ("always refuses", REFUSED, self._always_refuses),
            ("overconfident", CONFIDENCE, self._overconfident),
            ("actor and rollout drift", MISMATCH, self._drift),
        )
        for name, metric, rule in rules:
            if _finite(metrics.get(metric)) and self._mean(metric) is not None:
                yield name, metric, rule()

    def _reward_falls(self) -> str:
        now, share = self._now(REWARD), self.settings.reward_drop
        if now > self._peak - share * abs(self._peak) or self._peak - now <= self._noise(REWARD):
            return ""
        return f"mean reward {now:.3f}, after a peak of {self._peak:.3f} around step {self._peak_step}"

    def _replies_grow(self) -> str:
        now, first = self._now(LENGTH), self._first(LENGTH)
        grown = now - first
        if first <= 0 or grown < self.settings.length_growth * first or grown <= self._noise(LENGTH) or self._rising():
            return ""
        return f"replies of {now:.1f} tokens, {first:.1f} at the start (+{grown / first:.0%}), without more reward"

    def _entropy_vanishes(self) -> str:
        now, first = self._now(ENTROPY), self._first(ENTROPY)
        if now > (1 - self.settings.entropy_drop) * first or self._solved():
            return ""
        return f"entropy {now:.3g} nats per token, {first:.3g} at the start"

    def _far_from_reference(self) -> str:
        now = self._now(KL)
        return f"KL {now:.2f} nats per token from the reference" if now >= self.settings.kl else ""

    def _equal_groups(self) -> str:
        now = self._now(EQUAL)
        if now < self.settings.equal_groups or self._solved():
            return ""
        return f"{now:.0%} of the groups have equal rewards and teach nothing; mean reward {self._now(REWARD):.3f}"

    def _format_fails(self) -> str:
        failed = 1 - self._now(FORMAT)
        return f"{failed:.0%} of the replies do not parse" if failed >= self.settings.format_failures else ""

    def _wrong_space(self) -> str:
        now = self._now(SPACE)
        return f"{now:.0%} of the replies use another coordinate space" if now >= self.settings.wrong_space else ""

    def _always_refuses(self) -> str:
        now = self._now(REFUSED)
        if now < self.settings.refusals:
            return ""
        return f"{now:.0%} of the replies say that there is nothing where there is something to find"

    def _overconfident(self) -> str:
        stated, earned = self._now(CONFIDENCE), self._now(REWARD)
        if stated - earned < self.settings.overconfidence:
            return ""
        return f"stated confidence {stated:.2f} on average, mean reward {earned:.2f}"

    def _drift(self) -> str:
        now, first = self._now(MISMATCH), self._first(MISMATCH)
        if now < MISMATCH_FLOOR or now < MISMATCH_GROWTH * first:
            return ""
        return f"log-probabilities differ by {now:.3g} nats per token, {first:.3g} at the start"

    def _rising(self) -> bool:
        """The reward is above its start, if only by one standard error, and has not fallen from its peak."""
        first, now, chance = self._first(REWARD), self._now(REWARD), self._noise(REWARD)
        return now - first > chance / NOISE and self._peak - now <= max(chance, 0.05 * abs(self._peak))

    def _solved(self) -> bool:
        """The reward is high, or half of what was missing at the start has been gained: fewer choices are open then."""
        first, now = self._first(REWARD), self._now(REWARD)
        return now >= SOLVED or (now > first and now - first >= (1 - first) / 2)

    def _mean(self, name: str) -> float | None:
        """The average over the last window; None before there is one."""
        values, window = self._values.get(name, []), self.settings.window
        return sum(values[-window:]) / window if len(values) >= window else None

    def _now(self, name: str) -> float:
        mean = self._mean(name)
        assert mean is not None
        return mean

    def _first(self, name: str) -> float:
        window = self.settings.window
        return sum(self._values[name][:window]) / window

    def _noise(self, name: str) -> float:
        """How far two averages may lie apart by chance: from differences of neighbours, which a trend hardly moves."""
        values = self._values[name]
        squares = sum((b - a) * (b - a) for a, b in pairwise(values))
        variance = squares / (2 * max(1, len(values) - 1))
        return NOISE * math.sqrt(2 * variance / self.settings.window)


def restored_steps(events: Iterable[Mapping[str, Any]]) -> list[int]:
    """The steps after which a run went back to its best checkpoint, by its events; those that a resume undid are not."""
    steps: list[int] = []
    for event in events:
        if event["kind"] == "restored":
            steps.append(event["step"])
        elif event["kind"] == "resumed":
            steps = [step for step in steps if step <= event["step"]]
    return steps


def episodes(
    settings: CollapseWatch, lines: Iterable[Mapping[str, Any]], restored: Collection[int] = ()
) -> tuple[CollapseWatcher, list[Episode]]:
    """Replay the lines of a metrics.jsonl: the watcher as it stands after them, and every alarm that there was.

    A resumed run calls it to go on where it stopped, a report to mark the steps. `restored` (of `restored_steps`): after
    each of them the watch began anew.
    """
    watcher = CollapseWatcher(settings)
    running: dict[str, Episode] = {}
    ended: list[Episode] = []
    for line in lines:
        if not _finite(line.get(REWARD)):
            continue
        watcher.update(line["step"], line)
        ended += [running.pop(name) for name in list(running) if name not in watcher.active]
        running |= {name: Episode(alarm, line["step"]) for name, alarm in watcher.active.items()}
        if line["step"] in restored:
            watcher = CollapseWatcher(settings)
    return watcher, sorted([*ended, *running.values()], key=lambda episode: episode.alarm.since)


def _finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)
