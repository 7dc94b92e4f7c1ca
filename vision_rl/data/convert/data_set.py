"""A published data set as one short declaration, and the one reader that they all share.

A record of the set becomes one row, or several where it holds several questions (`unfold`). Nothing is guessed: the
declaration says the fields, what a multiple choice answer is written as, and the boxes' form and space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from vision_rl.answers.choices import choices_of, gold_letter
from vision_rl.data.convert.geometry import four_numbers, to_unit_xyxy
from vision_rl.data.convert.records import (
    OnBad,
    Record,
    Unpack,
    as_list,
    checked,
    converted,
    extra_fields,
    iter_records,
    source_files,
)
from vision_rl.errors import UserError
from vision_rl.media.images import image_size
from vision_rl.media.picture_files import picture_file
from vision_rl.media.video import sample_frames
from vision_rl.rewards.metrics import metric
from vision_rl.tasks import get_task

Fields = tuple[str, ...]
_CONVERSATIONS = {"objects": "messages-boxes", "messages": "messages", "conversations": "llava"}
"""Fields by which a layout is known, and the sets that read it."""
_LAYOUT_ERRORS = (KeyError, IndexError, TypeError, ValueError, AttributeError, SyntaxError)


def _as_it_is(record: Record) -> Iterable[Record]:
    return [record]


@dataclass(frozen=True)
class About:
    """A row of sets.yaml, whose head says what the fields mean."""

    title: str
    layout: str
    source: str
    rows: str
    licence: str
    get: str
    options: str = ""
    account: str = ""


@cache
def about_sets() -> dict[str, About]:
    """sets.yaml, by the name of the set."""
    rows = yaml.safe_load(Path(__file__).with_name("sets.yaml").read_text(encoding="utf-8"))
    return {name: About(**row) for name, row in rows.items()}


@dataclass(frozen=True)
class DataSet:
    """One published set.

    name: its row of sets.yaml (`about`), which says in words what and where it is; metric: its usual one.
    Fields name columns, of which the first that a record has counts. answer_as: how the answer to a question with
    choices is written (`gold_letter`); box_format, space: how boxes are (`to_unit_xyxy`); size: the field with the
    picture's [width, height]; folders: where in the image directory pictures may be; drop: fields not worth keeping in
    `meta`; mark: fields of which a parquet file of the set has one (default: of the question's and of the picture's);
    file_as: a field that the file's name fills in, in sets with one file for each kind of question.
    `unpack` takes the records out of a JSON object (None: it has none), `unfold` makes flat records of one, `metric_of`
    names a record's metric; `reader` takes the place of all this for a layout of its own.
    """

    name: str
    metric: str
    task: str = "vqa"
    image: Fields = ("image",)
    question: Fields = ("question",)
    answer: Fields = ("answers", "answer")
    choices: Fields = ()
    answer_as: str = "letter"
    identity: Fields = ("question_id", "id")
    boxes: Fields = ("bbox",)
    box_format: str = "xyxy"
    space: str = "pixels"
    size: str = ""
    folders: Fields = ("",)
    drop: Fields = ()
    mark: Fields = ()
    file_as: str = ""
    unpack: Unpack | None = None
    unfold: Callable[[Record], Iterable[Record]] = _as_it_is
    metric_of: Callable[[Record], str] | None = None
    reader: Callable[[Source, OnBad | None], Iterator[Record]] | None = None

    @property
    def about(self) -> About:
        """What it is, for a message or a table."""
        return about_sets()[self.name]

    @property
    def pictures(self) -> Fields:
        """Columns of the picture: those that the set names, or the hub's, which embeds it."""
        return tuple(dict.fromkeys((*self.image, "image")))


@dataclass(frozen=True)
class Source:
    """What to read. What is named here takes the place of what is declared.

    language: keep only the records in it; split: of a folder the files of it, of a refer file or one with a column `split` the
    records; frames: pictures to take of a video; frame: which one of a DICOM file with several; question and readers: see
    `box_sets.BoxOptions`; name: kept in every row as `source`.
    """

    path: Path
    image_dir: Path | None
    extract_dir: Path
    name: str
    image_field: str = ""
    question_field: str = ""
    answer_field: str = ""
    choices_field: str = ""
    answer_as: str = ""
    language: str = ""
    split: str = ""
    frames: int = 8
    frame: int | None = None
    question: str = ""
    readers: str = ""
    allow_unanswered: bool = False

    @property
    def directory(self) -> Path:
        """Where named pictures are, by default beside the file."""
        return self.image_dir or (self.path if self.path.is_dir() else self.path.parent)


def iter_rows(data_set: DataSet, source: Source, *, on_bad: OnBad | None = None) -> Iterator[Record]:
    """Yield schema rows with absolute image paths; a bad record goes to `on_bad`, or raises `UserError` without one."""
    if data_set.reader:
        yield from data_set.reader(source, on_bad)
        return
    own = _named(source.question_field, data_set.question), _named(source.image_field, data_set.pictures)
    for file in source_files(
        source.path, (data_set.mark,) if data_set.mark else own, data_set.about.title, source.split
    ):
        yield from converted(_flat_records(data_set, source, file), partial(_row, data_set, source), on_bad)


def _flat_records(data_set: DataSet, source: Source, file: Path) -> Iterator[tuple[str, str, Record | UserError]]:
    """(where it stands, its id, the flat record or why there is none)."""
    for number, record in iter_records(file, data_set.unpack, source.split):
        where = f"{file}, record {number}"
        if data_set.file_as:
            record.setdefault(data_set.file_as, file.stem.removeprefix("element_grounding_"))
        if source.language and str(record.get("q_lang", "")).lower() != source.language.lower():
            continue
        identity = _first(record, data_set.identity)
        identity = f"{file.stem}-{number}" if identity is None else str(identity)
        try:
            parts = list(data_set.unfold(record))
        except UserError as error:
            yield where, identity, UserError(f"{where}: {error}")
        except _LAYOUT_ERRORS as error:
            reason = (
                f"{where} is not in the layout of {data_set.about.title} ({error!r}), which is: {data_set.about.layout}"
            )
            yield where, identity, UserError(reason)
        else:
            for part, flat in enumerate(parts):
                yield where, identity if len(parts) == 1 else f"{identity}-{part}", flat


def _row(data_set: DataSet, source: Source, item: tuple[str, str, Record | UserError]) -> Record:
    where, identity, record = item
    if isinstance(record, UserError):
        raise record
    images, media = _pictures(data_set, source, record, where)
    sizes = [image_size(image) for image in images]
    names = _named(source.question_field, data_set.question)
    if _first(record, names) is None and (cure := _other_layout(record)):
        raise UserError(f"{where} has no {' or '.join(names)}: {cure}")
    question = _required(record, names, where, "name one with --question-field")
    known = {*_columns(data_set), *data_set.drop, *names, source.image_field, source.answer_field, source.choices_field}
    row: Record = {
        "id": identity,
        "task": data_set.task,
        "metric": data_set.metric_of(record) if data_set.metric_of else data_set.metric,
        "image_paths": [str(image) for image in images],
        "media": media,
        "question": question.replace("<image>", "").strip() if isinstance(question, str) else question,
        "image_sizes": [list(size) for size in sizes],
        "source": source.name,
        "meta": extra_fields(record, known),
    }
    if get_task(data_set.task).truth == "answers":
        row |= _answer(data_set, source, record, where)
    else:
        row |= _target(data_set, record, sizes[0], where)
        if polygon := record.get("polygon"):
            scaled = [number / sizes[0][place % 2] for place, number in enumerate(polygon)]
            row["meta"]["polygons"] = [scaled]  # x1, y1, x2, y2, ... in unit space, one per box
    return checked(row, where)


def _pictures(data_set: DataSet, source: Source, record: Record, where: str) -> tuple[list[Path], str]:
    """The pictures of a record, and whether they are "images" or the frames of a "video"."""
    names = _named(source.image_field, data_set.pictures)
    video = record.get("video", record.get("frames")) if "frames" in names else None
    if isinstance(video, str) and ("video" in record or (source.directory / video).is_dir()):
        return sample_frames(source.directory / video, source.extract_dir, source.frames), "video"
    values = as_list(_required(record, names, where, "name one with --image-field"))
    if not values:
        raise UserError(f"{where} has an empty list of images; fill in a picture or remove it")
    images = [_picture(item, data_set.folders, source, where) for item in values]
    return images, "video" if video is not None else "images"


def _picture(value: Any, folders: Fields, source: Source, where: str) -> Path:
    """The picture in the first of the folders that has it; the error is that of the image directory itself."""
    failed: UserError | None = None
    for folder in folders:
        try:
            return picture_file(value, source.directory / folder, source.extract_dir, where, source.frame)
        except UserError as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _answer(data_set: DataSet, source: Source, record: Record, where: str) -> Record:
    given = _first(record, _named(source.choices_field, data_set.choices)) or []
    try:
        choices = [str(choice) for choice in as_list(choices_of(given))]
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    if source.choices_field and not choices:
        raise UserError(f"{where} has no {source.choices_field}; its fields are {', '.join(record)}")
    answers = _answers(data_set, source, record, where)
    if not choices:
        return {"answers": answers}
    try:
        letters = [gold_letter(answer, choices, source.answer_as or data_set.answer_as) for answer in answers]
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    own = {} if data_set.metric and "choices" in metric(data_set.metric).takes else {"metric": "multiple_choice"}
    return {**own, "choices": choices, "answers": letters}


def _answers(data_set: DataSet, source: Source, record: Record, where: str) -> list[str]:
    names = _named(source.answer_field, data_set.answer)
    value = _first(record, names)
    if value is None and source.allow_unanswered:
        return []
    test_split = "pass --allow-unanswered for a test split"
    value = _required(record, names, where, f"name one with --answer-field, or {test_split}", test_split)
    # VQAv2 and its kin wrap each of the ten in an object.
    given = [item.get("answer") if isinstance(item, dict) else item for item in as_list(value)]
    answers = [str(item).strip() for item in given if item != ""]
    if not all(isinstance(item, (str, int, float)) for item in given) or not (answers or source.allow_unanswered):
        raise UserError(f"{where}: answers {value!r} are not texts; give one text or a list of texts")
    return answers


def _target(data_set: DataSet, record: Record, size: tuple[int, int], where: str) -> Record:
    stated = record.get(data_set.size)
    if stated and list(stated) != list(size):
        raise UserError(
            f"{where}: the file says {stated[0]} x {stated[1]} pixels, but the picture has {size[0]} x {size[1]}; its "
            "boxes are of another version of it"
        )
    value = _required(record, data_set.boxes, where, f"{data_set.about.title} has: {data_set.about.layout}")
    values = [value] if isinstance(value, str) or (value and not isinstance(value[0], (list, tuple))) else value
    form = {"box_format": data_set.box_format, "space": record.get("box_space", data_set.space), "where": where}
    boxes = [to_unit_xyxy(four_numbers(box, where), size, **form) for box in values]
    label = str(record.get("label", ""))
    return {"boxes": boxes, "labels": [label] * len(boxes)}


def _other_layout(record: Record) -> str:
    """The cure for a file of conversations that was given as one of questions; "" for any other."""
    name = next((layout for field, layout in _CONVERSATIONS.items() if field in record), "")
    return name and f"that is a file of conversations; read it with data_utils.py convert {name}"


def _columns(data_set: DataSet) -> Fields:
    return (*data_set.image, *data_set.answer, *data_set.choices, *data_set.boxes, "label", "polygon", "box_space")


def _named(chosen: str, declared: Fields) -> Fields:
    return (chosen,) if chosen else declared


def _first(record: Record, names: Fields) -> Any:
    return next((record[name] for name in names if name in record), None)


def _required(record: Record, names: Fields, where: str, cure: str, other: str = "") -> Any:
    """The first of the fields; `cure` is for a record without any of them, `other` one more for an empty one."""
    value = _first(record, names)
    if value is None:
        empty = [name for name in names if name in getattr(record, "empty", ())]
        if empty:
            cures = ["fill it in", "leave such records out with --skip-bad", *([other] if other else [])]
            raise UserError(f"{where}: its {empty[0]} is empty; {', or '.join(cures)}")
        raise UserError(f"{where} has no {' or '.join(names)}; its fields are {', '.join(record)}: {cure}")
    return value
