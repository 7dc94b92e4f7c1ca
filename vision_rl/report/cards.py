"""Questions with their replies side by side, as the page shows them: pictures, boxes, rewards and advantages."""

from __future__ import annotations

import contextlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vision_rl.agent.replay import (
    acted_at,
    answer_boxes,
    episode_pictures,
    is_played,
    picture_files,
    pictures_of,
    predicted_boxes,
    views_of,
)
from vision_rl.answers.boxes import Box
from vision_rl.errors import UserError
from vision_rl.media.images import image_size, open_image
from vision_rl.report.index import Rollout, lost
from vision_rl.report.pictures import Picture, picture, row_pictures
from vision_rl.settings import AgentSettings

VALIDATION_ROWS = 6
_TURN_SIDE = 260
_MOST_PICTURES = 4
_EPSILON = 1e-6
"""verl adds it to the standard deviation (verl/trainer/ppo/core_algos.py, compute_grpo_outcome_advantage)."""


@dataclass(frozen=True)
class Turn:
    """One reply, and the pictures that the model saw for the first time before it (not those of the row)."""

    reply: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Rollouts of a group that said the same.

    boxes: what was predicted, zooms: what tools showed, unit xyxy of the first picture. advantage: None outside of
    training, and for rollouts that taught nothing. failure: why they did not. facets: what the page filters by.
    """

    number: int
    turns: tuple[Turn, ...]
    reward: Mapping[str, float]
    count: int = 1
    failure: str = ""
    reason: str = ""
    tokens: int | None = None
    cut: bool = False
    boxes: tuple[Box, ...] = ()
    zooms: tuple[Box, ...] = ()
    advantage: float | None = None
    facets: Mapping[str, str] | None = None
    when: str = ""

    @property
    def push(self) -> str:
        """ "up", "down" or "none": where the update moves the reply's probability; "" where there is no update."""
        if self.advantage is None:
            return ""
        return "none" if abs(self.advantage) < _EPSILON else "up" if self.advantage > 0 else "down"


@dataclass(frozen=True)
class Card:
    """One question with its pictures, its truth and its answers. problem: why there are no pictures."""

    id: str
    heading: str
    question: str
    gold: str
    answers: tuple[Answer, ...]
    prompt: str = ""
    pictures: tuple[Picture, ...] = ()
    problem: str = ""

    @property
    def spread(self) -> float:
        """Highest less lowest reward."""
        rewards = [answer.reward.get("reward", 0.0) for answer in self.answers]
        return max(rewards) - min(rewards)


@dataclass(frozen=True)
class Source:
    """Where a run's rollouts come from. settings: the agent's; truth_of: the kind of truth of a rollout's row; by_std:
    advantages divide by the spread."""

    run_dir: Path
    settings: AgentSettings
    truth_of: Callable[[Rollout], str]
    name: str = ""
    by_std: bool = True


def advantages(group: Sequence[Rollout], by_std: bool = True) -> list[float | None]:
    """The advantage of each rollout of a group, as recorded; computed as GRPO does where the record lacks it.

    GRPO: (reward - mean of the group) / (standard deviation + 1e-6), Bessel's correction included, as verl's
    `compute_grpo_outcome_advantage` does; `by_std=False` (Dr. GRPO) leaves the division out. None for rollouts that were
    lost. Source: arXiv 2402.03300.
    """
    usable = [rollout for rollout in group if not lost(rollout)]
    rewards = [reward_of(rollout) for rollout in usable]
    mean = statistics.fmean(rewards) if len(rewards) > 1 else 0.0
    spread = statistics.stdev(rewards) + _EPSILON if by_std and len(rewards) > 1 else 1.0

    def one(rollout: Rollout) -> float | None:
        if lost(rollout):
            return None
        recorded = rollout.get("advantage")
        return float(recorded) if recorded is not None else (reward_of(rollout) - mean) / spread

    return [one(rollout) for rollout in group]


def group_cards(rollouts: Iterable[Rollout], source: Source, most: int) -> list[Card]:
    """Groups of one step: the widest spread of rewards, which teaches the most, first; then those that lost rollouts.

    most: how many of each of the two.
    """
    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout["group"], []).append(rollout)
    ordered = sorted(groups.values(), key=_spread, reverse=True)
    chosen = ordered[:most] + [group for group in ordered[most:] if any(map(lost, group))][:most]
    return [_card(_merged(group, source.by_std), source, "training") for group in chosen]


def validation_cards(by_step: Mapping[int, Sequence[Rollout]], source: Source) -> list[Card]:
    """The same rows at several validations: those that gained most first, then those that lost most."""
    steps = sorted(by_step)
    rows = [{rollout["id"]: rollout for rollout in by_step[step]} for step in steps]
    shared = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    ordered = sorted(shared, key=lambda name: reward_of(rows[0][name]) - reward_of(rows[-1][name]))
    half = VALIDATION_ROWS // 2
    names = ordered if len(ordered) <= VALIDATION_ROWS else [*ordered[:half], *ordered[-half:]]
    return [_card([(row[name], 1, None) for row in rows], source, "validation") for name in names]


def reward_of(rollout: Rollout) -> float:
    """The reward that trains; 0 for a rollout that failed."""
    return float(rollout["reward"].get("reward", 0.0))


def gold_text(answers: Sequence[str], boxes: Sequence[Sequence[float]]) -> str:
    """The truth in words: answers with how many people gave them, or boxes in unit space."""
    if not answers:
        return "; ".join(", ".join(f"{number:.3f}" for number in box) for box in boxes) or "nothing to find"
    counts = Counter(answers).most_common()
    return ", ".join(f"{answer} ({count})" if len(counts) > 1 else answer for answer, count in counts)


def card_pictures(
    paths: Sequence[str], true: Sequence[Box], answers: Sequence[Answer]
) -> tuple[tuple[Picture, ...], str]:
    """(pictures of a row with truth and predictions over them, why there are none)."""
    try:
        shown = row_pictures(paths[:_MOST_PICTURES], true)
    except UserError as error:
        return (), str(error)
    boxes: list[Any] = [("true", 0, box) for box in true]
    for answer in answers:
        boxes += [("zoom", answer.number, box) for box in answer.zooms]
        boxes += [("predicted", answer.number, box) for box in answer.boxes]
    return tuple(each.marked(boxes) for each in shown), ""


def _spread(group: Sequence[Rollout]) -> float:
    rewards = list(map(reward_of, group))
    return max(rewards) - min(rewards)


def _merged(group: Sequence[Rollout], by_std: bool) -> list[tuple[Rollout, int, float | None]]:
    """(rollout, how many said the same, advantage), the best first."""
    same: dict[tuple[str, ...], list[tuple[Rollout, float | None]]] = {}
    for rollout, advantage in zip(group, advantages(group, by_std), strict=True):
        same.setdefault((*rollout["replies"], lost(rollout)), []).append((rollout, advantage))
    found = [(entries[0][0], len(entries), entries[0][1]) for entries in same.values()]
    return sorted(found, key=lambda entry: (-reward_of(entry[0]), bool(lost(entry[0])), -entry[1]))


def _card(entries: Sequence[tuple[Rollout, int, float | None]], source: Source, mode: str) -> Card:
    row = entries[0][0]
    true: list[Box] = [(box[0], box[1], box[2], box[3]) for box in row["boxes"]]
    answers = tuple(_answer(number, *entry, source, mode, true) for number, entry in enumerate(entries, start=1))
    shown, problem = card_pictures(row["image_paths"], true, answers)
    where = f"{source.name}, " if source.name else ""
    heading = f"{where}step {row['step']}, {mode}" if mode == "training" else f"{where}validation over time"
    prompt = row.get("prompt") or ""
    gold = gold_text(row["answers"], row["boxes"])
    return Card(row["id"], heading, row["question"], gold, answers, prompt, shown, problem)


def _answer(
    number: int,
    rollout: Rollout,
    count: int,
    advantage: float | None,
    source: Source,
    mode: str,
    true: Sequence[Box],
) -> Answer:
    boxes, views = _looked(rollout, source)
    marks: list[Any] = [("true", 0, box) for box in true] + [("predicted", number, box) for box in boxes]
    facets = {
        "run": source.name,
        "mode": mode,
        "step": str(rollout["step"]),
        "source": str(rollout.get("source") or ""),
        "worker": rollout["worker"],
        "failure": lost(rollout) or "none",
    }
    return Answer(
        number=number,
        turns=tuple(
            _episode_turns(rollout, source, number)
            if is_played(rollout)
            else _turns(rollout, source.run_dir, views, marks)
        ),
        reward=rollout["reward"],
        count=count,
        failure=lost(rollout),
        reason=rollout["reason"],
        tokens=sum(rollout["response_tokens"]),
        cut="length" in rollout["finish_reasons"],
        boxes=boxes,
        zooms=tuple(box for box in views[1:] if box is not None),
        advantage=advantage,
        facets=facets,
        when=f"step {rollout['step']}" if mode == "validation" else "",
    )


def _looked(rollout: Rollout, source: Source) -> tuple[tuple[Box, ...], list[Box | None]]:
    """(boxes of the last reply, where each picture of the conversation lies), in the first picture's unit space.

    The replies' tool calls are carried out once more where there were any; without their pictures, only an answer about the
    first one can be placed.
    """
    if not rollout["replies"] or source.truth_of(rollout) != "boxes":
        return (), []
    with contextlib.suppress(UserError):
        if rollout["reward"].get("tools/zooms"):
            views = views_of(rollout, source.settings, pictures_of(source.run_dir, rollout))
            return tuple(answer_boxes(rollout, source.settings, views)), [view.box for view in views]
    with contextlib.suppress(UserError):
        record = {"reply": rollout["replies"][-1], "components": rollout["reward"]}
        return tuple(predicted_boxes(record, source.settings, image_size(rollout["image_paths"][0]))), []
    return (), []


def _episode_turns(rollout: Rollout, source: Source, number: int) -> list[Turn]:
    """An episode's replies in order, each with the pictures that the model saw before it, and where it acted."""
    turns: list[Any] = []
    for reply, files in zip(rollout["replies"], episode_pictures(source.run_dir, rollout), strict=True):
        shown: list[Picture] = []
        for place, file in enumerate(files, start=1):
            with contextlib.suppress(UserError):
                image = open_image(file)
                places = acted_at(reply, source.settings, image.size) if place == len(files) else []
                title = f"turn {len(turns) + 1}, {image.width} x {image.height} pixels"
                marks: list[Any] = [("predicted", number, (x, y, x, y)) for x, y in places]
                shown.append(picture(image, side=_TURN_SIDE, title=title).marked(marks))
        turns.append(Turn(reply, tuple(shown)))
    return turns


def _turns(rollout: Rollout, run_dir: Path, views: Sequence[Box | None], marks: Sequence[Any]) -> list[Turn]:
    """Replies in order; a picture that is gone is left out, its reply stays."""
    shown = [picture_files(run_dir, refs) for refs in rollout["image_refs"]]
    turns, seen = [], len(shown[0]) if shown else 0
    for reply, files in zip(rollout["replies"], shown, strict=True):
        found = []
        for number, file in enumerate(files[seen:], start=seen):
            try:
                image = open_image(file)
            except UserError:
                continue
            title = f"picture {number + 1}, {image.width} x {image.height} pixels"
            view = views[number] if number < len(views) else None
            found.append(replace(picture(image, side=_TURN_SIDE, title=title), view=view).marked(marks))
        turns.append(Turn(reply, tuple(found)))
        seen = max(seen, len(files))
    return turns
