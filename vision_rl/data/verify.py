"""Verify a data set before training: check every row, open every picture, score every gold answer.

A row is bad if it does not fit the schema; if a picture cannot be opened, is too large, too small or too narrow, or is
not of the stated size; if a box is empty; if it repeats another row or its id; if a picture of it also occurs in
another split (found by content, not by name), or its patient does; or if its own gold answer, written in the model family's
format, does not parse and score 1.0 with the reward that trains.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vision_rl.answers.coordinates import get_family, smart_resize
from vision_rl.answers.space import AnswerSpace
from vision_rl.data.episodes import EpisodeChecks
from vision_rl.data.row import normalise_row
from vision_rl.data.schema import group_of, iter_raw_rows, relabels, with_absolute_paths, write_rows
from vision_rl.errors import UserError
from vision_rl.media.check_images import ImageCheck, check_images
from vision_rl.media.images import LIMIT_PIXELS, too_narrow
from vision_rl.models.tokens import VISION_MARK
from vision_rl.rewards import grounding_reward
from vision_rl.rewards.multiple_choice import alike
from vision_rl.settings import AgentSettings
from vision_rl.tasks import Task, get_task

FEW_GREY_LEVELS = 32
"""A radiograph has far more; one with fewer was converted to 8 bits by a rule that does not suit it."""
# Six decimals of a 0..1 box lose this much IoU on the smallest boxes that are found in practice.
GOLD_TOLERANCE = 1e-3
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Checks:
    """What to verify against. min_pixels and max_pixels are the areas that the model's processor resizes to.

    task: the task of rows that name none; a row of another task is bad. None: of any task.
    """

    family: str = "unit"
    answer_format: str = "bbox"
    min_pixels: int = 56 * 56
    max_pixels: int = 14 * 14 * 4 * 16384
    limit_pixels: int = LIMIT_PIXELS
    min_side: int = 4
    open_images: bool = True
    workers: int | None = None
    strict: bool = False
    allow_unanswered: bool = False
    task: str | None = None


@dataclass(frozen=True)
class Problem:
    """One bad row: its number from 0 (as `DataFrame.iloc`), its id and the reason."""

    row: int
    id: str
    reason: str


@dataclass
class Report:
    """The result of `verify`. `notes` say what is worth knowing and makes no row bad."""

    rows: int = 0
    images: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def bad_rows(self) -> set[int]:
        return {problem.row for problem in self.problems}


def verify(
    path: str | Path,
    *,
    checks: Checks | None = None,
    image_base_dir: str | Path | None = None,
    against: Sequence[str | Path] = (),
    progress: Progress = lambda items, label, total: items,
) -> Report:
    """Check every row of a parquet file; `against` are the other splits, which must share no picture and no patient with it.

    `progress(items, label, total)` may wrap the loops. Raises `UserError` for a file that cannot be read at all.
    """
    checks = checks or Checks()
    get_family(checks.family)
    if not 0 < checks.min_pixels <= checks.max_pixels:
        raise UserError(f"--min-pixels {checks.min_pixels} and --max-pixels {checks.max_pixels} leave no size between")
    if next(iter_raw_rows(path), None) is None:
        raise UserError(f"{path} holds no rows; convert a data set into it with data_utils.py")
    pictures = _open_all([path, *against], image_base_dir, checks, progress)
    elsewhere = _contents_elsewhere(against, image_base_dir, pictures)
    groups = _groups_elsewhere(against)
    report = Report(images=len(_paths_of(path, image_base_dir)))
    seen = _Seen()
    other = {"task": checks.task} if relabels(path, checks.task) else {}
    gold, episodes = _GoldScores(checks), EpisodeChecks(against, open_them=checks.open_images)
    for number, raw in progress(iter_raw_rows(path), "rows", 0):
        report.rows += 1
        try:
            row = normalise_row(raw | other, number=number, task=checks.task)
        except ValueError as error:
            report.problems.append(Problem(number, str(raw.get("id", "")), str(error)))
            continue
        if checks.task not in (None, row["task"]):
            report.problems.append(Problem(number, row["id"], f"it is of task {row['task']}, not {checks.task}"))
            continue
        row = with_absolute_paths(row, image_base_dir or Path(path).parent)
        reasons = _image_reasons(row, pictures, checks) + _text_reasons(row)
        if not reasons:
            contents = [pictures[image].content for image in row["image_paths"] if image in pictures]
            reasons += [f"its picture is also in {elsewhere[c]}" for c in dict.fromkeys(contents) if c in elsewhere]
            if (group := group_of(row)) in groups:
                reasons.append(f"its {group} is also in {groups[group]}")
            reasons += seen.reasons(number, row, contents)
            sizes = [pictures[image].size for image in row["image_paths"] if image in pictures] or row["image_sizes"]
            reasons += episodes.reasons(row) if get_task(row["task"]).environment else gold.reasons(row, sizes)
        report.problems += [Problem(number, row["id"], reason) for reason in reasons]
    report.notes += gold.notes() + _grey_notes(pictures) + episodes.notes()
    episodes.close()
    return report


def write_good_rows(
    path: str | Path, output: str | Path, bad_rows: set[int], image_base_dir: str | Path | None = None
) -> int:
    """Write the rows of `path` that are not bad to `output` (may be the same file) and return their number."""
    base = image_base_dir or Path(path).parent
    return write_rows(
        output,
        (
            with_absolute_paths(normalise_row(raw, number=number), base)
            for number, raw in iter_raw_rows(path)
            if number not in bad_rows
        ),
    )


def _paths_of(path: str | Path, image_base_dir: str | Path | None) -> dict[str, None]:
    """The picture paths of all rows that fit the schema, each once, in order."""
    paths: dict[str, None] = {}
    for number, raw in iter_raw_rows(path):
        try:
            row = with_absolute_paths(normalise_row(raw, number=number), image_base_dir or Path(path).parent)
        except ValueError:
            continue
        paths.update(dict.fromkeys(row["image_paths"]))
    return paths


def _open_all(
    files: Sequence[str | Path], image_base_dir: str | Path | None, checks: Checks, progress: Progress
) -> dict[str, ImageCheck]:
    if not checks.open_images:
        return {}
    paths: dict[str, None] = {}
    for file in files:
        paths.update(_paths_of(file, image_base_dir))
    results = check_images(paths, workers=checks.workers, limit_pixels=checks.limit_pixels)
    return {result.path: result for result in progress(results, "images", len(paths))}


def _groups_elsewhere(against: Sequence[str | Path]) -> dict[str | None, str]:
    """The patients of other splits, and the file that each is in."""
    found: dict[str | None, str] = {}
    for file in against:
        for number, raw in iter_raw_rows(file):
            with contextlib.suppress(ValueError):
                found.setdefault(group_of(normalise_row(raw, number=number)), str(file))
    found.pop(None, None)
    return found


def _grey_notes(pictures: dict[str, ImageCheck]) -> list[str]:
    few = [check for check in pictures.values() if check.grey_levels and check.grey_levels < FEW_GREY_LEVELS]
    if not few:
        return []
    return [
        f"{len(few)} grey pictures have fewer than {FEW_GREY_LEVELS} grey levels (the first: {few[0].path}, "
        f"{few[0].grey_levels}); were they converted from 16 bits by another program?"
    ]


def _contents_elsewhere(
    against: Sequence[str | Path], image_base_dir: str | Path | None, pictures: dict[str, ImageCheck]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in against:
        for image in _paths_of(file, image_base_dir):
            if image in pictures and pictures[image].content:
                found.setdefault(pictures[image].content, f"{file} ({Path(image).name})")
    return found


def _image_reasons(row: dict[str, Any], pictures: dict[str, ImageCheck], checks: Checks) -> list[str]:
    reasons = []
    for index, image in enumerate(row["image_paths"]):
        stated = tuple(row["image_sizes"][index]) if row["image_sizes"] else None
        picture = pictures.get(image)
        if picture is not None and picture.error:
            reasons.append(picture.error)
            continue
        size = picture.size if picture else stated
        if size is None:
            continue
        if stated is not None and size != stated:
            reasons.append(f"image_sizes says {stated[0]} x {stated[1]}, but {image} is {size[0]} x {size[1]}")
        if min(size) < checks.min_side:
            reasons.append(f"{image} is {size[0]} x {size[1]}, a side is below {checks.min_side} pixels")
        elif reason := too_narrow(*size):
            reasons.append(f"{image} {reason}")
    return reasons


def _text_reasons(row: dict[str, Any]) -> list[str]:
    """Tokens of vision models in a row's texts: agents write them with a blank, so that the model reads something else."""
    texts = {"question": [row["question"]], "choices": row["choices"], "answers": row["answers"]}
    found = {name: mark.group() for name, each in texts.items() for text in each if (mark := VISION_MARK.search(text))}
    return [
        f"its {name} holds {mark!r}, a token by which models mark pictures; remove it" for name, mark in found.items()
    ]


class _Seen:
    """Ids and rows that came before."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._rows: dict[bytes, int] = {}

    def reasons(self, number: int, row: dict[str, Any], contents: list[str]) -> list[str]:
        reasons = []
        first = self._ids.setdefault(row["id"], number)
        if first != number:
            reasons.append(f"its id occurs already in row {first}")
        content = [row[name] for name in ("question", "choices", "answers", "boxes", "labels")]
        identity = [contents or row["image_paths"] or row["meta"], *content]
        first = self._rows.setdefault(hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).digest(), number)
        if first != number:
            reasons.append(f"it repeats row {first} (same picture, question and answer)")
        return reasons


class _GoldScores:
    """Scores the gold answer of each row, and remembers what no model of the family could reach."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self._disputed = 0
        self._ceilings: list[float] = []
        self._rounded: list[float] = []
        self._unscored: set[str] = set()
        self._alike: dict[str, list[str]] = {}

    def reasons(self, row: dict[str, Any], sizes: Sequence[Sequence[int]]) -> list[str]:
        task = get_task(row["task"])
        if task.truth == "answers" and not row["answers"]:
            return [] if self._checks.allow_unanswered else ["it has no answer"]
        if any(x1 == x2 or y1 == y2 for x1, y1, x2, y2 in row["boxes"]):
            return ["a box is empty (no width or no height)"]
        if task.truth == "boxes" and not sizes:
            return ["the size of its picture is unknown: fill in image_sizes or let verify open the pictures"]
        if same := alike(row["choices"]):
            self._alike[row["id"]] = same
        gold, score = task.part("gold"), task.part("score")
        if gold is None or score is None:
            self._unscored.add(task.name)
            return []
        asked = {**row, "image_sizes": [list(size) for size in sizes], "settings": self._settings(task)}
        try:
            reply, best = gold(asked)
            value = score(asked, reply).value
            if task.truth == "boxes":
                self._rounded.append(self._as_rounded(row["boxes"], (sizes[0][0], sizes[0][1])))
        except UserError as error:
            return [str(error)]
        if value < best - GOLD_TOLERANCE:
            shown = f" {reply!r}" if task.truth == "answers" else ""
            return [f"its gold answer{shown} scores {value:.4g} instead of {best:.3g}{self._form(task)}"]
        self._ceilings.append(best)
        if best < 1:
            self._disputed += 1
            if self._checks.strict:
                return [f"its annotators disagree: no answer scores above {best:.3g}"]
        return []

    def _form(self, task: Task) -> str:
        return ": it does not parse as an answer" if task.truth == "answers" else f" as {self._checks.family}"

    def _settings(self, task: Task) -> dict[str, Any]:
        """What an agent would get, with the model that the checks name."""
        checks = self._checks
        own = {key.removeprefix("agent."): value for key, value in task.layer().items() if key.startswith("agent.")}
        model = {"family": checks.family, "min_pixels": checks.min_pixels, "max_pixels": checks.max_pixels}
        settings = {**asdict(AgentSettings()), **own, **model, "answer_format": checks.answer_format}
        return settings | ({"reward": self._by()} if task.truth == "boxes" and task.source == "" else {})

    def _by(self) -> str:
        """The reward that a perfect model earns in full: a family that writes points has no boxes to overlap."""
        return "point" if AnswerSpace(self._checks.answer_format, self._checks.family).takes_points else "iou"

    def _as_rounded(self, boxes: list[list[float]], size: tuple[int, int]) -> float:
        """The score of the true boxes against themselves, once their numbers are rounded as the family writes them."""
        checks = self._checks
        space = AnswerSpace(checks.answer_format, checks.family, size, _processed_size(size, checks))
        return grounding_reward(space.write(boxes), boxes, space, kind=self._by()).value

    def notes(self) -> list[str]:
        notes = [f"gold answers of {name} were not scored: its task has no gold or score" for name in self._unscored]
        if self._alike:
            first, letters = next(iter(self._alike.items()))
            notes.append(
                f"{len(self._alike)} questions have choices that read alike, so that only a letter can name them (row {first}: "
                f"{' and '.join(letters)})"
            )
        if self._disputed:
            ceiling = sum(self._ceilings) / len(self._ceilings)
            notes.append(
                f"{self._disputed} questions are disputed: their annotators agree too little for any answer to score "
                f"1.0; the best possible mean accuracy is {ceiling:.4f} (--strict counts them as bad)"
            )
        if self._rounded and min(self._rounded) < 1 - GOLD_TOLERANCE:
            mean, low = sum(self._rounded) / len(self._rounded), min(self._rounded)
            hard = sum(score < 0.5 for score in self._rounded)
            notes.append(
                f"numbers rounded as {self._checks.family} writes them cap the mean IoU at {mean:.4f} "
                f"(lowest {low:.4f}; {hard} rows cannot reach 0.5)"
            )
        return notes


def _processed_size(size: tuple[int, int], checks: Checks) -> tuple[int, int]:
    """(width, height) that the family's processor resizes to; the size itself where that is not known."""
    factor = get_family(checks.family).factor
    if factor is None:
        return size
    height, width = smart_resize(size[1], size[0], factor, checks.min_pixels, checks.max_pixels)
    return width, height
