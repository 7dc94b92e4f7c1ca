"""Records of published sets that hold several questions, or keep them in another shape, as flat records."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vision_rl.answers.choices import LETTERS
from vision_rl.data.convert.records import Record
from vision_rl.errors import UserError

_IMAGE_TOKEN = re.compile(r"<image (\d)>")
_BOX, _OBJECT = "<bbox>", re.compile("<ref-object>")
_ANSWER_TAG = re.compile(r"</?answer>")


def data_list(value: Mapping[str, Any]) -> list[Record] | None:
    """TextVQA's, DocVQA's and InfographicVQA's JSON: `{"data": [...], ...}`."""
    return value.get("data")


def by_key(value: Mapping[str, Any]) -> list[Record] | None:
    """GQA's JSON: an object of questions by their id."""
    if not all(isinstance(item, dict) for item in value.values()):
        return None
    return [{"question_id": key, **item} for key, item in value.items()]


def mmmu(record: Record) -> Iterable[Record]:
    """Choices are the text of a Python list, and the question names its pictures as <image 1> to <image 7>."""
    options = ast.literal_eval(record["options"]) if isinstance(record.get("options"), str) else record.get("options")
    named = dict.fromkeys(_IMAGE_TOKEN.findall(f"{record['question']} {' '.join(map(str, options or []))}"))
    flat = {name: value for name, value in record.items() if not name.startswith("image_")}
    flat |= {"images": [record[f"image_{number}"] for number in named or ["1"]], "options": options or []}
    if flat.get("answer") == "?":  # of the test split, whose answers are not published
        del flat["answer"]
    elif not options and str(flat.get("answer", "")).startswith("["):
        flat["answer"] = ast.literal_eval(flat["answer"])
    return [flat]


_FLOAT = "a floating-point number with {} and provide the final value, e.g., {}"
_MATHVISTA_HINTS = {
    "integer": "an integer answer and provide the final value, e.g., 1, 2, 3",
    "float 1": _FLOAT.format("one decimal place", "1.2, 1.3, 1.4"),
    "float 2": _FLOAT.format("two decimal places", "1.23, 1.34, 1.45"),
    "list": "a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4]",
}
"""What the set's own `query` says about the form of the answer (evaluation/build_query.py), for copies without one."""


def mathvista(record: Record) -> Iterable[Record]:
    """The question is the set's own `query`, which says the form of the answer; its list of choices is the prompt's to write.

    Its `metadata` is the breakdown of the paper; the unit of an answer belongs to the question.
    """
    query = str(record.get("query") or "").partition("\nChoices:")[0].removesuffix("\nSolution:").strip()
    if not query:
        unit = f" (Unit: {record['unit']})" if record.get("unit") else ""
        kind = str(record.get("answer_type"))
        hint = _MATHVISTA_HINTS.get(f"{kind} {int(record.get('precision') or 0)}" if kind == "float" else kind)
        query = f"Hint: Please answer the question requiring {hint}, at the end.\n" if hint else ""
        query += f"Question: {record['question']}{unit}"
    return [{**record.get("metadata", {}), **record, "question": query}]


def scienceqa(record: Record) -> Iterable[Record]:
    """The hint is the context of a question; half of the questions have no picture and cannot be asked here."""
    hint = f"Context: {record['hint']}\n" if record.get("hint") else ""
    asked = {**record, "question": f"{hint}{record['question']}"}
    if "image" not in record:
        raise UserError("it has no image; take the IMG part, or leave such questions out with --skip-bad")
    return [asked]


def verl(record: Record) -> Iterable[Record]:
    """The question is extra_info's, which has no instructions for a format, else what the user says in `prompt`."""
    extra = record.get("extra_info") or {}
    question = extra.get("question") or said(record["prompt"])
    kept = {name: value for name, value in record.items() if name not in ("prompt", "reward_model", "extra_info")}
    return [{**kept, "question": question, "answer": record["reward_model"]["ground_truth"]}]


def said(prompt: Any) -> str:
    """What the user says in verl's `prompt`, a text or a list of messages."""
    parts = [part["content"] for part in prompt if part["role"] == "user"] if isinstance(prompt, list) else [prompt]
    return "\n".join(parts)


def verl_metric(record: Record) -> str:
    """`ability` tells mathematics from the rest."""
    return "math" if record.get("ability") == "math" else "exact_match"


def pairs(record: Record) -> Iterator[tuple[str, Any]]:
    """(what the human says, what the model says) of LLaVA's `conversations`, which may be JSON text."""
    turns = record["conversations"]
    turns = json.loads(turns) if isinstance(turns, str) else turns
    for human, model in zip(turns[::2], turns[1::2], strict=True):
        if (human["from"], model["from"]) != ("human", "gpt"):
            raise ValueError("turns of a conversation are not human and gpt in turn")
        yield human["value"], model["value"]


def llava(record: Record) -> Iterable[Record]:
    """One question per pair of turns."""
    kept = {name: value for name, value in record.items() if name != "conversations"}
    return [{**kept, "question": human, "answer": model} for human, model in pairs(record)]


def messages(record: Record) -> Iterable[Record]:
    """One question per turn of user and assistant in `messages` (ms-swift, LLaMA-Factory, TRL), pictures in `images` or in
    the parts of the content."""
    turns = [turn for turn in record["messages"] if turn["role"] != "system"]
    kept = {name: value for name, value in record.items() if name != "messages"}
    pictures = [picture for turn in turns for picture in _pictures_in(turn["content"])]
    if pictures and not any(name in kept for name in ("images", "image")):
        kept["images"] = pictures
    flat = []
    for user, assistant in zip(turns[::2], turns[1::2], strict=True):
        if (user["role"], assistant["role"]) != ("user", "assistant"):
            raise ValueError("turns of a conversation are not user and assistant in turn")
        flat.append({**kept, "question": _text_in(user["content"]), "answer": _text_in(assistant["content"])})
    if any(_BOX in f"{one['question']}{one['answer']}" for one in flat) and "objects" in record:
        raise UserError("its texts have <bbox> in them, and its objects say where: read it with convert messages-boxes")
    return flat


def messages_boxes(record: Record) -> Iterable[Record]:
    """ms-swift's grounding: one turn, in which <ref-object> and <bbox> stand for those of `objects`, in order."""
    objects = record["objects"]
    [flat] = messages({name: value for name, value in record.items() if name != "objects"})
    names, boxes = iter(objects.get("ref") or ()), list(objects["bbox"])
    if _BOX in flat["question"] or flat["answer"].count(_BOX) != len(boxes):
        raise UserError(
            f"its answer has {flat['answer'].count(_BOX)} <bbox> for {len(boxes)} boxes (in its question none can be used)"
        )
    flat["question"] = _OBJECT.sub(lambda mark: str(next(names, mark.group())), flat["question"])
    return [{**flat, "bbox": boxes, "box_space": "unit" if objects.get("bbox_type") == "norm1" else "pixels"}]


def _text_in(content: Any) -> str:
    parts = [{"text": content}] if isinstance(content, str) else content
    return "\n".join(part["text"] for part in parts if part.get("text")).strip()


def _pictures_in(content: Any) -> list[Any]:
    """The pictures that the parts of a content name or embed: {"type": "image", "image": ...} and OpenAI's image_url."""
    parts = [] if isinstance(content, str) else content
    named = [part.get(name) for part in parts for name in ("image", "image_url", "url", "path")]
    return [one for one in named if one]


def lettered_columns(record: Record) -> Iterable[Record]:
    """VLMEvalKit's choices are columns A, B, C, ...; any other record is flat as it is."""
    letters = [letter for letter in LETTERS if letter in record]
    if letters[:2] != ["A", "B"] or any(name in record for name in ("choices", "options")):
        return [record]
    kept = {name: value for name, value in record.items() if name not in letters}
    return [{**kept, "choices": {letter: str(record[letter]) for letter in letters}}]


def vlm_r1(record: Record) -> Iterable[Record]:
    """One question; its answer is a box [x1, y1, x2, y2] as a list or a JSON text, perhaps in <answer>."""
    if "conversations" in record:
        [(problem, solution)] = pairs(record)
    else:
        problem, solution = record["problem"], record["solution"]
    if isinstance(solution, str):
        solution = json.loads(_ANSWER_TAG.sub("", solution))
    kept = {name: value for name, value in record.items() if name not in ("conversations", "problem", "solution")}
    return [{**kept, "question": problem, "bbox": solution}]


def uground(record: Record) -> Iterable[Record]:
    """One question per pair of turns; the answer is a box in 0..1000 as a text."""
    flat = []
    for instruction, box in pairs(record):
        if str(box).count(",") == 1:
            raise UserError(f"its answer {box} is a point without a box; take osunlp/UGround-V1-Data-Box")
        flat.append({"image": record["image"], "instruction": instruction, "bbox": box})
    return flat


def elements(record: Record) -> Iterable[Record]:
    """SeeClick's web files list the `elements` of a screenshot; OS-Atlas has one element per record."""
    shared = {name: value for name, value in record.items() if name != "elements"}
    return [shared | {"label": item.get("data_type", "")} | item for item in record.get("elements", [record])]


def expressions(record: Record) -> Iterable[Record]:
    """RefCOCO's records list the expressions of one object."""
    kept = {name: value for name, value in record.items() if name not in ("question", "answer", "segmentation")}
    given = record["answer"]
    return [{**kept, "expression": text} for text in ([given] if isinstance(given, str) else given)]


def regions(record: Record) -> Iterable[Record]:
    """Visual Genome's regions of one picture: phrase, x, y, width, height."""
    picture = record.get("image", record.get("image_id", record.get("id")))
    return [
        {
            "image": picture,
            "phrase": region["phrase"],
            "bbox": [region[name] for name in ("x", "y", "width", "height")],
            "region_id": region["region_id"],
        }
        for region in record["regions"]
    ]


def mmbench_gui(record: Record) -> Iterable[Record]:
    """Pictures lie in a folder for each platform; -1 at a border means 0. Its owners take 0..1 and pixels alike.

    `l2_element_grounding.py` there: a box whose numbers are all in 0..1 is in 0..1, any other in pixels.
    """
    box = [max(number, 0) for number in record["bbox"]]
    space = "unit" if max(box) <= 1 else "pixels"
    image = record["image"] if "image" in record else f"{record['platform']}/{record['image_path']}"
    return [{**record, "image": image, "bbox": box, "box_space": space, "label": record.get("data_type", "")}]


def venusbench_gd(record: Record) -> Iterable[Record]:
    """The file says the task; in the one of refusals there is nothing to point at."""
    refused = str(record["task_type"]).startswith("refusal")
    return [{**record, **({"bbox": []} if refused else {}), "label": record.get("ui_element_type", "")}]


def osworld_g(record: Record) -> Iterable[Record]:
    """A box as x, y, width, height; a polygon x1, y1, x2, y2, ..., whose bounding box is taken; a refusal has none."""
    kind, numbers = str(record["box_type"]).lower(), list(record.get("box_coordinates", []))
    flat = {name: value for name, value in record.items() if name != "box_coordinates"}
    flat["label"] = ", ".join(record.get("GUI_types") or [])
    if kind == "refusal":
        return [{**flat, "bbox": []}]
    if kind == "polygon":
        xs, ys = numbers[::2], numbers[1::2]
        if len(xs) != len(ys) or len(xs) < 3:
            raise UserError(f"its polygon {numbers} is not three or more points; correct or remove it")
        left, top = min(xs), min(ys)
        return [{**flat, "bbox": [left, top, max(xs) - left, max(ys) - top], "polygon": numbers}]
    if kind != "bbox":
        raise UserError(f"its box_type is {kind!r}, expected bbox, polygon or refusal; correct it")
    return [{**flat, "bbox": numbers}]
