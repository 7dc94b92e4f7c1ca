"""report.html: self-contained, pictures decode, boxes lie where they belong, replies stay text, Chromium shows it."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.test_evaluation_metrics import IDENTITY, boxed, record
from vision_rl.evaluation.cases import case_of, drawable, predicted_boxes, worst_and_best
from vision_rl.evaluation.report import write_report
from vision_rl.evaluation.summary import summarise
from vision_rl.rewards.grounding import gold_reply

CHROMIUM = next((name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), None)
SETTINGS: dict[str, Any] = {"answer_format": "bbox", "family": "unit", "min_pixels": None, "max_pixels": None}
TRUE, PREDICTED = (0.25, 0.4, 0.5, 0.7), (0.6, 0.1, 0.9, 0.35)
GREEN, PINK = (10, 143, 60), (214, 36, 110)


class Page(HTMLParser):
    """The elements of a page as (tag, attributes), and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def pictures(self) -> list[tuple[dict[str, str], dict[str, str], list[dict[str, str]]]]:
        """(img, svg over it, its rects) of every picture with an overlay."""
        found: list[tuple[dict[str, str], dict[str, str], list[dict[str, str]]]] = []
        image: dict[str, str] = {}
        for tag, attributes in self.elements:
            if tag == "img":
                image = attributes
            elif tag == "svg" and image:
                found.append((image, attributes, []))
                image = {}
            elif tag == "rect":
                found[-1][2].append(attributes)
        return found


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


def page_of(folder: Path, records: list[dict[str, Any]], task: str = "grounding") -> Page:
    summary = summarise({**IDENTITY, "task": task, "settings": SETTINGS}, {r["row"]: r for r in records}, len(records))
    return Page(write_report(folder, summary, records).read_text(encoding="utf-8"))


def decoded(image: dict[str, str]) -> Image.Image:
    head, _, data = image["src"].partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    opened = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    opened.load()
    return opened


def test_pictures_decode_and_boxes_lie_on_them(tmp_path: Path) -> None:
    reply = gold_reply([PREDICTED], decimals=6)
    page = page_of(tmp_path, [boxed(0, reply, [TRUE], image_paths=[picture(tmp_path)], image_sizes=[[400, 300]])])
    assert len(page.all("img")) == 1
    image, overlay, rects = page.pictures()[0]
    pixels = decoded(image)
    assert pixels.size == (int(image["width"]), int(image["height"])) == (400, 300)
    assert overlay["viewbox"] == "0.0 0.0 1.0 1.0" and overlay["preserveaspectratio"] == "none"
    for rect, box in zip(rects, (TRUE, PREDICTED), strict=True):
        x, y, width, height = (float(rect[name]) for name in ("x", "y", "width", "height"))
        assert (x, y, x + width, y + height) == pytest.approx(box)
    assert [rect["class"] for rect in rects] == ["box true", "box predicted"]
    assert _bright(pixels) == pytest.approx([400 * 0.25, 300 * 0.4, 400 * 0.5, 300 * 0.7], abs=1)


def test_small_boxes_get_a_close_up_whose_overlay_fits_its_cut(tmp_path: Path) -> None:
    small = (0.505, 0.51, 0.525, 0.545)
    path = picture(tmp_path, (3840, 2160), small)
    page = page_of(tmp_path, [boxed(0, gold_reply([small]), [small], image_paths=[path], image_sizes=[[3840, 2160]])])
    whole, close = page.pictures()
    assert max(decoded(whole[0]).size) == 720
    left, top, width, height = (float(number) for number in close[1]["viewbox"].split())
    pixels = decoded(close[0])
    rect = {name: float(close[2][0][name]) for name in ("x", "y", "width", "height")}
    # Where the browser puts the box on the close-up, in its pixels, against where its white patch is.
    shown = [
        (rect["x"] - left) / width * pixels.width,
        (rect["y"] - top) / height * pixels.height,
        (rect["x"] + rect["width"] - left) / width * pixels.width,
        (rect["y"] + rect["height"] - top) / height * pixels.height,
    ]
    assert _bright(pixels) == pytest.approx(shown, abs=1.5)


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script><img src="http://evil/x.png"><bbox>[0.2, 0.2, 0.4, 0.4]</bbox>'
    row = boxed(0, evil, [TRUE], image_paths=[picture(tmp_path)], question='"><svg onload=alert(2)>', id="</pre><b>")
    page = page_of(tmp_path, [row])
    assert page.all("script") == [] and page.all("link") == []
    assert all(image["src"].startswith("data:") for image in page.all("img")) and len(page.all("img")) == 1
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert any("<script>alert(1)</script>" in text for text in page.texts)
    assert "http" not in (tmp_path / "report.html").read_text().replace("http://evil", "")


def test_worst_come_first_then_best_and_none_twice(tmp_path: Path) -> None:
    path = picture(tmp_path)
    shifts = [0.3, 0.0, 0.05, 0.2, 0.1]
    records = []
    for number, dx in enumerate(shifts):
        reply = gold_reply([[TRUE[0] + dx, TRUE[1], TRUE[2] + dx, TRUE[3]]], decimals=6)
        records.append(boxed(number, reply, [TRUE], image_paths=[path]))
    page = page_of(tmp_path, records)
    order = [int(article["data-row"]) for article in page.all("article")]
    assert order == [0, 3, 4, 1, 2]
    many = [{**records[0], "row": n} for n in range(60)]
    worst, best = worst_and_best("grounding", many, 12)
    assert len(worst) == len(best) == 12 and not {r["row"] for r in worst} & {r["row"] for r in best}


def test_of_equally_wrong_answers_the_surest_is_shown_first(tmp_path: Path) -> None:
    records = [
        record(n, "vqa", f"no <confidence>{sure}</confidence>", answers=["yes"], image_paths=[picture(tmp_path)])
        for n, sure in enumerate((0.2, 0.95, 0.5))
    ]
    assert [row["row"] for row in worst_and_best("vqa", records, 3)[0]] == [1, 2]
    page = page_of(tmp_path, records, "vqa")
    assert {"id": "reliability"}.items() <= page.all("svg")[0].items()
    assert len(page.all("circle")) == 3


def test_a_picture_that_is_gone_is_said(tmp_path: Path) -> None:
    page = page_of(tmp_path, [boxed(0, gold_reply([TRUE]), [TRUE], image_paths=[str(tmp_path / "gone.png")])])
    assert page.all("img") == [] and any("gone.png does not exist" in text for text in page.texts)


def test_native_answers_are_drawn_in_the_space_that_the_model_saw() -> None:
    # 1000 x 500 is seen as 1008 x 504; a box there in pixels of that size.
    native = {**SETTINGS, "answer_format": "native", "family": "qwen2_5_vl", "min_pixels": 3136, "max_pixels": 10**7}
    row = {"reply": '[{"bbox_2d": [252, 126, 504, 378]}]', "components": {}}
    assert predicted_boxes(row, native, (1000, 500)) == [pytest.approx((0.25, 0.25, 0.5, 0.75))]
    zoomed = {**row, "components": {"tools/zooms": 1.0}}
    assert predicted_boxes(zoomed, {**native, "answer_view": "last"}, (1000, 500)) == []


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        ((0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4)),
        ((0.3, 0.4, 0.1, 0.2), (0.1, 0.2, 0.3, 0.4)),
        ((0.5, 0.5, 0.5, 0.5), (0.497, 0.497, 0.503, 0.503)),
        ((0.5, 0.2, 0.5, 0.4), (0.497, 0.2, 0.503, 0.4)),
    ],
)
def test_points_and_swapped_corners_can_be_seen(box: Any, shown: Any) -> None:
    assert drawable(box) == pytest.approx(shown)


def test_vqa_pages_have_no_overlay_and_show_several_pictures(tmp_path: Path) -> None:
    paths = [picture(tmp_path, size) for size in ((400, 300), (200, 200), (90, 60))]
    row = record(0, "vqa", "red", answers=["red"] * 7 + ["dark red"] * 3, image_paths=paths)
    page = page_of(tmp_path, [row], "vqa")
    assert len(page.all("img")) == 3 and page.all("rect") == []
    assert any("red (7), dark red (3)" in text for text in page.texts)
    assert len(case_of({**row, "image_paths": paths * 3}, SETTINGS).pictures) == 4


def test_a_long_answer_is_cut_beside_its_scrolling_reply(tmp_path: Path) -> None:
    row = record(0, "vqa", "x" * 5000, answers=["red"] * 10, image_paths=[picture(tmp_path)])
    page = page_of(tmp_path, [row], "vqa")
    assert [len(text) for text in page.texts if text.startswith("xxx")] == [200, 5000]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; the tests above check the page's content")
def test_chromium_draws_the_boxes_where_they_belong(tmp_path: Path) -> None:
    reply = gold_reply([PREDICTED], decimals=6)
    folder = tmp_path / "page"
    page_of(folder, [boxed(0, reply, [TRUE], image_paths=[picture(tmp_path)], image_sizes=[[400, 300]])])
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --hide-scrollbars --force-device-scale-factor=1 "
        "--window-size=1240,2000"
    )
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--screenshot={tmp_path / 'shot.png'}", (folder / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    dark = np.abs(shot - (20, 20, 40)).sum(axis=2) < 12
    left, top, right, bottom = _extent(dark)
    width, height = right - left, bottom - top
    assert width / height == pytest.approx(400 / 300, rel=0.02)
    inside = shot[top:bottom, left:right]
    for colour, box in ((GREEN, TRUE), (PINK, PREDICTED)):
        found = _extent(np.abs(inside - colour).sum(axis=2) < 40)
        expected = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
        assert found == pytest.approx(expected, abs=4), colour


def _bright(image: Image.Image) -> list[int]:
    return _extent(np.asarray(image.convert("L")) > 128)


def _extent(mask: Any) -> list[int]:
    """(left, top, right, bottom) of the true pixels; right and bottom exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert len(rows) and len(columns), "nothing of that colour"
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
