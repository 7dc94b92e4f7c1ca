"""The page of an evaluation: pictures decode, boxes lie where they belong, replies stay text."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.recorded_runs import HOSTILE
from tests.test_evaluation_metrics import IDENTITY, boxed, record
from tests.test_report import Elements
from vision_rl.agent.replay import predicted_boxes
from vision_rl.answers.space import AnswerSpace
from vision_rl.evaluation.report import case_card, page_of, worst_and_best, write_report
from vision_rl.evaluation.results import open_store
from vision_rl.evaluation.summary import summarise, write_summary
from vision_rl.report.__main__ import main
from vision_rl.report.cards import Card
from vision_rl.report.page import render
from vision_rl.report.pictures import Mark, Picture
from vision_rl.settings import AgentSettings

SETTINGS: dict[str, Any] = {"answer_format": "bbox", "family": "unit", "min_pixels": None, "max_pixels": None}
TRUE, PREDICTED = (0.25, 0.4, 0.5, 0.7), (0.6, 0.1, 0.9, 0.35)


def picture(folder: Path, size: tuple[int, int] = (400, 300), box: tuple[float, ...] = TRUE) -> str:
    """A dark picture with a white patch at `box`."""
    image = Image.new("RGB", size, (20, 20, 40))
    corners = [
        round(box[0] * size[0]),
        round(box[1] * size[1]),
        round(box[2] * size[0]) - 1,
        round(box[3] * size[1]) - 1,
    ]
    ImageDraw.Draw(image).rectangle(corners, fill="white")
    path = folder / f"{size[0]}x{size[1]}-{box[0]}.png"
    image.save(path)
    return str(path)


def cards_of(records: list[dict[str, Any]], task: str = "grounding") -> list[Card]:
    summary = summarise({**IDENTITY, "task": task, "settings": SETTINGS}, {r["row"]: r for r in records}, len(records))
    return list(page_of(summary, records).cards)


def decoded(shown: Picture) -> Image.Image:
    head, _, data = shown.uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    opened = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    opened.load()
    return opened


def corners(mark: Mark) -> tuple[float, ...]:
    return mark.x, mark.y, mark.x + mark.width, mark.y + mark.height


def test_pictures_decode_and_boxes_lie_on_them(tmp_path: Path) -> None:
    reply = AnswerSpace().write([PREDICTED], decimals=6)
    [card] = cards_of([boxed(0, reply, [TRUE], image_paths=[picture(tmp_path)], image_sizes=[[400, 300]])])
    [shown] = card.pictures
    pixels = decoded(shown)
    assert pixels.size == (shown.width, shown.height) == (400, 300)
    assert [mark.kind for mark in shown.marks] == ["true", "predicted"]
    for mark, box in zip(shown.marks, (TRUE, PREDICTED), strict=True):
        assert corners(mark) == pytest.approx([v * side for v, side in zip(box, (400, 300) * 2, strict=True)])
    assert _bright(pixels) == pytest.approx([400 * 0.25, 300 * 0.4, 400 * 0.5, 300 * 0.7], abs=1)


def test_hostile_rows_stay_texts(tmp_path: Path) -> None:
    path = picture(tmp_path)
    names = ("question", "id", "source")
    rows = [
        boxed(
            n,
            f"{HOSTILE if n else ''}<bbox>[0.2, 0.2, 0.4, 0.4]</bbox>",
            [TRUE],
            image_paths=[path],
            image_sizes=[[400, 300]],
            labels=[HOSTILE if n else "a"],
            **{name: HOSTILE if n else "plain" for name in names},
        )
        for n in (0, 1)
    ]
    identity = {**IDENTITY, "task": "grounding", "settings": SETTINGS, "model": HOSTILE}
    plain = Elements(render(page_of(summarise({**identity, "model": "m"}, {0: rows[0]}, 1), rows[:1])))
    shown = Elements(render(page_of(summarise(identity, dict(enumerate(rows)), 2), rows)))
    assert {tag for tag, _ in shown.elements} <= {tag for tag, _ in plain.elements} | {"label", "option", "select"}
    assert len(shown.all("script")) == 3 and "owned" not in shown.scripts[-1]
    assert not any(name.startswith("on") for _, attributes in shown.elements for name in attributes)
    assert shown.text.count("document.title='owned'") > 5


def test_worst_come_first_then_best_and_none_twice(tmp_path: Path) -> None:
    path = picture(tmp_path)
    shifts = [0.3, 0.0, 0.05, 0.2, 0.1]
    records = []
    for number, dx in enumerate(shifts):
        reply = AnswerSpace().write([[TRUE[0] + dx, TRUE[1], TRUE[2] + dx, TRUE[3]]], decimals=6)
        records.append(boxed(number, reply, [TRUE], image_paths=[path]))
    headings = [card.heading for card in cards_of(records)]
    assert headings == ["worst, row 0", "worst, row 3", "worst, row 4", "best, row 1", "best, row 2"]
    many = [{**records[0], "row": n} for n in range(60)]
    worst, best = worst_and_best("grounding", many, 12)
    assert len(worst) == len(best) == 12 and not {r["row"] for r in worst} & {r["row"] for r in best}


def test_of_equally_wrong_answers_the_surest_is_shown_first(tmp_path: Path) -> None:
    records = [
        record(n, "vqa", f"no <confidence>{sure}</confidence>", answers=["yes"], image_paths=[picture(tmp_path)])
        for n, sure in enumerate((0.2, 0.95, 0.5))
    ]
    assert [row["row"] for row in worst_and_best("vqa", records, 3)[0]] == [1, 2]
    summary = summarise({**IDENTITY, "task": "vqa", "settings": SETTINGS}, {r["row"]: r for r in records}, 3)
    page = page_of(summary, records)
    [drawing] = [drawing for drawing in page.drawings if drawing.title == "Calibration"]
    assert drawing.figure["data"][1]["x"] == pytest.approx((0.2, 0.5, 0.95))
    assert page.tables[-1].title == "Calibration" and "3 rows" in page.tables[-1].note


def test_a_picture_that_is_gone_is_said(tmp_path: Path) -> None:
    [card] = cards_of([boxed(0, AnswerSpace().write([TRUE]), [TRUE], image_paths=[str(tmp_path / "gone.png")])])
    assert card.pictures == () and "gone.png does not exist" in card.problem


def test_native_answers_are_drawn_in_the_space_that_the_model_saw() -> None:
    # 1000 x 500 is seen as 1008 x 504; a box there in pixels of that size.
    native = {**SETTINGS, "answer_format": "native", "family": "qwen2_5_vl", "min_pixels": 3136, "max_pixels": 10**7}
    row = {"reply": '[{"bbox_2d": [252, 126, 504, 378]}]', "components": {}}
    assert predicted_boxes(row, AgentSettings.read(native), (1000, 500)) == [pytest.approx((0.25, 0.25, 0.5, 0.75))]


def test_an_answer_in_a_zoomed_view_is_not_placed(tmp_path: Path) -> None:
    row = boxed(0, AnswerSpace().write([PREDICTED]), [TRUE], image_paths=[picture(tmp_path)], image_sizes=[[400, 300]])
    row["components"]["tools/zooms"] = 1.0
    assert case_card(row, AgentSettings(answer_view="last"), "worst").answers[0].boxes == ()
    assert case_card(row, AgentSettings(), "worst").answers[0].boxes != ()


def test_vqa_pages_have_no_overlay_and_show_several_pictures(tmp_path: Path) -> None:
    paths = [picture(tmp_path, size) for size in ((400, 300), (200, 200), (90, 60))]
    row = record(0, "vqa", "red", answers=["red"] * 7 + ["dark red"] * 3, image_paths=paths)
    [card] = cards_of([row], "vqa")
    assert len(card.pictures) == 3 and not any(shown.marks for shown in card.pictures)
    assert card.gold == "red (7), dark red (3); answered red"
    assert len(case_card({**row, "image_paths": paths * 3}, AgentSettings(), "worst").pictures) == 4


def test_a_long_answer_is_cut_beside_its_scrolling_reply(tmp_path: Path) -> None:
    row = record(0, "vqa", "x" * 5000, answers=["red"] * 10, image_paths=[picture(tmp_path)])
    [card] = cards_of([row], "vqa")
    assert card.gold == f"red; answered {'x' * 200}"
    assert card.answers[0].turns[0].reply == "x" * 5000


def test_the_page_can_be_made_again_from_its_directory(tmp_path: Path) -> None:
    row = boxed(0, AnswerSpace().write([TRUE]), [TRUE], image_paths=[picture(tmp_path)], image_sizes=[[400, 300]])
    identity = {**IDENTITY, "task": "grounding", "settings": SETTINGS}
    summary = summarise(identity, {0: row}, 1)
    with open_store(tmp_path / "e", identity) as store:
        store.add(row)
    write_summary(tmp_path / "e", summary, {0: row})
    write_report(tmp_path / "e", summary, [row])
    first = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    main([str(tmp_path / "e")])
    again = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    nonce = r"nonce[-=][^'> ]+"
    assert re.sub(nonce, "", first) == re.sub(nonce, "", again)


def _bright(image: Image.Image) -> list[int]:
    return _extent(np.asarray(image.convert("L")) > 128)


def _extent(mask: Any) -> list[int]:
    """(left, top, right, bottom) of the true pixels; right and bottom exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert len(rows) and len(columns), "nothing of that colour"
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
