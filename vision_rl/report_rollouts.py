"""What a run's report shows of its rollouts: groups of a few steps, validation rows over time, and what failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vision_rl.boxes import Box
from vision_rl.coordinates import Size
from vision_rl.data.images import open_image
from vision_rl.drawing import Picture, picture
from vision_rl.errors import UserError
from vision_rl.evaluation.cases import drawable, predicted_boxes
from vision_rl.replay import answer_boxes, picture_path, pictures_of, views_of

Rollout = Mapping[str, Any]

GROUPS_PER_STEP = 3
VALIDATION_ROWS = 6
EXAMPLES = 3
_TURN_SIDE = 260


@dataclass(frozen=True)
class Turn:
    """One reply, and the pictures that the model saw for the first time before it (not those of the row)."""

    reply: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Answer:
    """Rollouts that said the same. boxes: what was predicted, unit xyxy of the first picture; when: for whom it is shown."""

    number: int
    turns: tuple[Turn, ...]
    count: int
    reward: Mapping[str, float]
    failure: str
    tokens: int
    cut: bool
    boxes: tuple[Box, ...]
    when: str = ""


@dataclass(frozen=True)
class Card:
    """One question with its pictures, its truth, and answers. problem: why there are no pictures."""

    id: str
    question: str
    gold: str
    pictures: tuple[Picture, ...]
    true: tuple[Box, ...]
    answers: tuple[Answer, ...]
    problem: str = ""


@dataclass
class Failure:
    """A reason why rollouts were lost. examples: ids of rows, with step, worker and what exactly was wrong."""

    count: int = 0
    first: int = 0
    last: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sampled:
    """What one pass over rollouts.jsonl keeps: training rollouts of the chosen steps, validation rollouts, failures."""

    chosen: dict[int, list[Rollout]]
    validation: dict[int, list[Rollout]]
    failures: dict[str, Failure]
    components: tuple[str, ...]
    total: int


def sample(rollouts: Iterable[Rollout], steps: Sequence[int]) -> Sampled:
    """One pass, so that a file of gigabytes is never held in memory."""
    chosen: dict[int, list[Rollout]] = {step: [] for step in steps}
    validation: dict[int, list[Rollout]] = {}
    failures: dict[str, Failure] = {}
    components: dict[str, None] = {}
    total = 0
    for rollout in rollouts:
        total += 1
        components.update(dict.fromkeys(rollout["reward"]))
        if rollout["failure"]:
            _count(failures.setdefault(rollout["failure"], Failure(first=rollout["step"])), rollout)
        if rollout["mode"] == "val":
            validation.setdefault(rollout["step"], []).append(rollout)
        elif rollout["step"] in chosen:
            chosen[rollout["step"]].append(rollout)
    components.pop("reward", None)
    return Sampled(chosen, validation, failures, tuple(components), total)


def first_mid_last(steps: Sequence[int]) -> list[int]:
    """The first, the middle and the last of some steps, each once."""
    return sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []


def group_cards(rollouts: Sequence[Rollout], run_dir: Path, settings: Mapping[str, Any]) -> list[Card]:
    """The groups of one step that teach the most: the widest spread of rewards first."""
    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout["group"], []).append(rollout)
    ordered = sorted(groups.values(), key=lambda group: -_spread(group))
    return [_card(_merged(group), run_dir, settings) for group in ordered[:GROUPS_PER_STEP]]


def validation_cards(
    by_step: Mapping[int, Sequence[Rollout]], run_dir: Path, settings: Mapping[str, Any]
) -> list[Card]:
    """The same rows at the first, the middle and the last validation: those that gained most, then those that lost."""
    steps = first_mid_last(sorted(by_step))
    rows = [{rollout["id"]: rollout for rollout in by_step[step]} for step in steps]
    shared = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    ordered = sorted(shared, key=lambda name: _reward(rows[0][name]) - _reward(rows[-1][name]))
    half = VALIDATION_ROWS // 2
    names = ordered if len(ordered) <= VALIDATION_ROWS else [*ordered[:half], *ordered[-half:]]
    cards = []
    for name in names:
        kept = [(row[name], 1, f"step {step}") for row, step in zip(rows, steps, strict=True)]
        cards.append(_card(kept, run_dir, settings))
    return cards


def _count(failure: Failure, rollout: Rollout) -> None:
    failure.count += 1
    failure.last = rollout["step"]
    if len(failure.examples) < EXAMPLES:
        why = f": {rollout['reason']}" if rollout["reason"] else ""
        failure.examples.append(f"{rollout['id']} (step {rollout['step']}, {rollout['worker'] or 'no worker'}){why}")


def _reward(rollout: Rollout) -> float:
    return float(rollout["reward"].get("reward", 0.0))


def _spread(group: Sequence[Rollout]) -> float:
    rewards = [_reward(rollout) for rollout in group]
    return max(rewards) - min(rewards)


def _merged(group: Sequence[Rollout]) -> list[tuple[Rollout, int, str]]:
    """(rollout, how many said the same, ""), the best first."""
    same: dict[tuple[str, ...], list[Rollout]] = {}
    for rollout in group:
        same.setdefault((*rollout["replies"], rollout["failure"]), []).append(rollout)
    found = [(rollouts[0], len(rollouts), "") for rollouts in same.values()]
    return sorted(found, key=lambda entry: (-_reward(entry[0]), -entry[1]))


def _card(entries: Sequence[tuple[Rollout, int, str]], run_dir: Path, settings: Mapping[str, Any]) -> Card:
    row = entries[0][0]
    true = tuple((box[0], box[1], box[2], box[3]) for box in row["boxes"])
    problem, shown, size = "", [], None
    try:
        images = [open_image(path) for path in row["image_paths"]]
        shown = [picture(image, title=f"picture {number}") for number, image in enumerate(images, start=1)]
        size = images[0].size if images else None
    except UserError as error:
        problem = str(error)
    answers = [_answer(number, *entry, size, run_dir, settings) for number, entry in enumerate(entries, start=1)]
    return Card(row["id"], row["question"], _gold(row), tuple(shown), true, tuple(answers), problem)


def _answer(
    number: int,
    rollout: Rollout,
    count: int,
    when: str,
    size: Size | None,
    run_dir: Path,
    settings: Mapping[str, Any],
) -> Answer:
    return Answer(
        number=number,
        turns=tuple(_turns(rollout, run_dir)),
        count=count,
        reward=rollout["reward"],
        failure=rollout["failure"],
        tokens=sum(rollout["response_tokens"]),
        cut="length" in rollout["finish_reasons"],
        boxes=_boxes(rollout, size, run_dir, settings),
        when=when,
    )


def _boxes(rollout: Rollout, size: Size | None, run_dir: Path, settings: Mapping[str, Any]) -> tuple[Box, ...]:
    """The boxes of the last reply in the first picture's unit space, also where it answers in a zoomed picture's."""
    if size is None or not rollout["replies"] or settings["truth"] != "boxes":
        return ()
    if settings["answer_view"] == "last" and rollout["reward"].get("tools/zooms"):
        try:
            found = answer_boxes(rollout, settings, views_of(rollout, settings, pictures_of(run_dir, rollout)))
        except UserError:  # a picture is gone
            return ()
    else:
        record = {"reply": rollout["replies"][-1], "components": rollout["reward"]}
        found = predicted_boxes(record, settings, size)
    return tuple(map(drawable, found))


def _turns(rollout: Rollout, run_dir: Path) -> list[Turn]:
    """Replies in order; a picture that is gone is left out, its reply stays."""
    turns, seen = [], len(rollout["image_refs"][0]) if rollout["image_refs"] else 0
    for reply, refs in zip(rollout["replies"], rollout["image_refs"], strict=True):
        found = []
        for number, ref in enumerate(refs[seen:], start=seen + 1):
            try:
                found.append(
                    picture(open_image(picture_path(run_dir, ref)), side=_TURN_SIDE, title=f"picture {number}")
                )
            except UserError:
                continue
        turns.append(Turn(reply, tuple(found)))
        seen = max(seen, len(refs))
    return turns


def _gold(row: Rollout) -> str:
    if not row["answers"]:
        return "; ".join(", ".join(f"{number:.3f}" for number in box) for box in row["boxes"]) or "nothing to find"
    counts = {answer: row["answers"].count(answer) for answer in row["answers"]}
    ordered = sorted(counts, key=lambda answer: -counts[answer])
    return ", ".join(f"{answer} ({counts[answer]})" if len(counts) > 1 else answer for answer in ordered)
