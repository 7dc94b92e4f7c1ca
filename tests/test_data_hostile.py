"""Files that are damaged or say too little: one sentence with the place and the cure, never a traceback or a wrong row."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_utils
from tests.data_samples import picture, png_bytes, write_screenspot_hf, write_screenspot_pro, write_screenspot_v2
from tests.data_samples import write_vqav2 as write_vqav2_files
from vision_rl.data.convert.data_set import Source, iter_rows
from vision_rl.data.convert.sets import get_set
from vision_rl.data.schema import read_rows, write_rows
from vision_rl.errors import UserError
from vision_rl.files import WriteError, replacing
from vision_rl.media.images import open_image

DEEP = "[" * 100_000 + "]" * 100_000
LONE = "half of \ud83d"


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """A directory with the pictures a.png and b.png of 100 x 80 pixels."""
    for index, name in enumerate(("a.png", "b.png")):
        picture((100, 80), index).save(tmp_path / name)
    return tmp_path


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str]:
    """(exit code, stderr) of data_utils.py."""
    monkeypatch.setattr(sys, "argv", ["data_utils.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        data_utils.main()
    return int(exit_info.value.code or 0), capsys.readouterr().err


def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, output: Path, reason: str, *arguments: object
) -> None:
    """The command ends with one sentence that has `reason`, and writes nothing."""
    code, error = command(capsys, monkeypatch, *arguments)
    assert code == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert reason in error
    assert not output.is_file()


CUSTOM = [
    ("x.csv", "image,question,answer\na.png,what,red, white\n", "more cells than the header"),
    ("x.csv", "image,answer\na.png,q,x,y\n", "more cells than the header"),
    ("x.csv", "image,question,answer\n" + "a" * 5000 + ",q,x\n", "embedded image is not a picture"),
    ("x.json", DEEP, "not readable JSON"),
    ("x.jsonl", DEEP, "line 1 is not JSON"),
    ("x.jsonl", json.dumps({"image": "a.png", "question": LONE, "answer": "x"}), "surrogate"),
    ("x.jsonl", json.dumps({"image": "a.png", "question": "q", "answer": "x", "note": LONE}), "surrogate"),
    ("x.jsonl", json.dumps({"image": "a.png", "question": 5, "answer": "x"}), "question"),
    ("x.jsonl", json.dumps({"image": "a.png", "question": "q", "answers": []}), "answers []"),
    ("x.jsonl", json.dumps({"image": "a.png", "question": "q", "answers": [{"text": "yes"}]}), "are not texts"),
]


@pytest.mark.parametrize(("name", "text", "reason"), CUSTOM, ids=range(len(CUSTOM)))
def test_custom(
    name: str, text: str, reason: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / name).write_text(text)
    output = folder / "o.parquet"
    refused(capsys, monkeypatch, output, reason, "convert-custom", "--input", folder / name, "--output", output)


def test_skip_bad_leaves_out_what_does_not_fit_the_schema(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["  ", LONE, 5, "what"]
    lines = [json.dumps({"image": "a.png", "question": question, "answer": "x"}) for question in questions]
    (folder / "x.jsonl").write_text("\n".join(lines))
    arguments = ["convert-custom", "--input", folder / "x.jsonl", "--output", folder / "o.parquet", "--skip-bad"]
    code, error = command(capsys, monkeypatch, *arguments)
    assert code == 0
    assert [f"record {number}" in line for number, line in enumerate(error.splitlines())] == [True] * 3
    assert [row["question"] for row in read_rows(folder / "o.parquet")] == ["what"]


def test_nothing_left_after_skip_bad_is_an_error_that_says_why(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "x.csv").write_text("image,question,answer\nc.png,q,x\n")
    arguments = ["convert-custom", "--input", folder / "x.csv", "--output", folder / "o.parquet", "--skip-bad"]
    refused(capsys, monkeypatch, folder / "o.parquet", "c.png does not exist", *arguments)


def table(header: str, *lines: str) -> str:
    return "\n".join([header, *lines]) + "\n"


CORNERS = "image,x_min,y_min,x_max,y_max,label"
BOXES = [
    # Silently a set without findings, if nobody asks.
    ("x.csv", table("image,left,top,right,bottom,label", "a.png,1,2,30,40,nodule"), [], "box in a known column"),
    ("x.csv", table("image,left,top,right,bottom", "a.png,1,2,30,40"), [], "box in a known column"),
    ("x.csv", table(CORNERS, "a.png,,,,,nodule", "b.png,1,1,5,5,nodule"), [], "label 'nodule' and no box"),
    ("x.csv", table(CORNERS, "a.png,1,,3,4,nodule", "b.png,1,1,5,5,nodule"), [], "only a part of its box (x_min,"),
    ("x.jsonl", json.dumps({"image": "a.png", "boxes": [{"left": 1, "top": 2}]}), [], "known keys"),
    # A misspelt option must not be ignored.
    ("x.csv", table(CORNERS, "a.png,1,2,3,4,x"), ["--label-field", "kind"], "--label-field kind"),
    ("x.csv", table(CORNERS, "a.png,1,2,3,4,x"), ["--question-field", "text"], "--question-field text"),
    ("x.csv", table(CORNERS, "a.png,0.1,0.1,0.5,0.5,x"), [], "within one pixel"),
    ("x.jsonl", json.dumps({"image": "a.png", "boxes": 5}), [], "not a list of boxes"),
    ("x.csv", table("image,boxes", "a.png,5"), [], "not a list of boxes"),
]


@pytest.mark.parametrize(("name", "text", "options", "reason"), BOXES, ids=range(len(BOXES)))
def test_boxes(
    name: str,
    text: str,
    options: list[str],
    reason: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / name).write_text(text)
    output = folder / "o.parquet"
    arguments = ["convert-boxes", "--space", "pixels", "--input", folder / name, "--output", output, *options]
    refused(capsys, monkeypatch, output, reason, *arguments)


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.png", "boxes": [], "label": "nodule"},
        {"image": "a.png", "label": "No finding"},
        {"image": "a.png", "boxes": "[]"},
        {"image": "a.png", "label": "No finding", "width": 100, "height": 80},
        {"image": "a.png", "boxes": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}},
    ],
)
def test_what_says_enough_is_taken(
    record: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "x.jsonl").write_text(json.dumps(record))
    arguments = ["convert-boxes", "--space", "pixels", "--input", folder / "x.jsonl", "--output", folder / "o.parquet"]
    assert command(capsys, monkeypatch, *arguments)[0] == 0
    (row,) = read_rows(folder / "o.parquet")
    assert len(row["boxes"]) == (isinstance(record.get("boxes"), dict))


def test_records_without_a_picture_are_left_out_by_skip_bad(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "x.csv").write_text(table(CORNERS, "a.png,1,2,3,4,x", ",1,2,3,4,x"))
    output = folder / "o.parquet"
    arguments = ["convert-boxes", "--space", "pixels", "--input", folder / "x.csv", "--output", output, "--skip-bad"]
    code, error = command(capsys, monkeypatch, *arguments)
    assert (code, len(read_rows(output))) == (0, 1)
    assert "record 1 names no image" in error


IMAGE = {"id": 1, "file_name": "a.png", "width": 100, "height": 80}
ANNOTATION = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": [{"file_name": "a.png"}]}, "images[0] has no usable id"),
        ({"images": [{"id": 1}]}, "images[0] has no usable file_name"),
        ({"images": ["a.png"]}, "images[0]"),
        ({"images": [{"id": [1], "file_name": "a.png"}]}, "images[0]"),
        ({"images": [IMAGE, {**IMAGE, "file_name": "b.png"}]}, "same id"),
        ({"images": [{**IMAGE, "width": 1000, "height": 780}]}, "1000 x 780"),
        ({"annotations": [{"category_id": 1, "bbox": [1, 2, 3, 4]}]}, "annotations[0] has no usable image_id"),
        ({"annotations": [{"image_id": 1, "category_id": 1}]}, "annotations[0] has no usable bbox"),
        ({"annotations": [{**ANNOTATION, "image_id": 9}]}, "image_id 9"),
        ({"annotations": [{**ANNOTATION, "category_id": 9}]}, "category_id 9"),
        ({"annotations": None}, "COCO"),
        ({"categories": [{"id": 1}]}, "categories[0] has no usable name"),
    ],
)
def test_coco(
    change: dict[str, Any],
    reason: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = {"images": [IMAGE], "annotations": [ANNOTATION], "categories": [{"id": 1, "name": "cat"}]}
    output = folder / "o.parquet"
    arguments = ["convert-boxes", "--input", folder / "x.json", "--output", output]
    (folder / "x.json").write_text(json.dumps({**good, **change}))
    refused(capsys, monkeypatch, output, reason, *arguments)
    (folder / "x.json").write_text(json.dumps(good))
    assert command(capsys, monkeypatch, *arguments)[0] == 0


@pytest.mark.parametrize(
    ("write", "change", "reason"),
    [
        (write_screenspot_v2, {"img_filename": 5}, "does not exist"),
        (write_screenspot_v2, {"img_filename": None}, "item 0 names no picture"),
        (write_screenspot_v2, {"instruction": None}, "item 0: its question"),
        (write_screenspot_v2, {"instruction": LONE}, "item 0: a text of it holds half a character"),
        (write_screenspot_v2, {"bbox": [True, True, True, True]}, "not four numbers"),
        (write_screenspot_v2, {"bbox": [0.1, 0.1, 0.2, 0.2]}, "item 0: box"),
        (write_screenspot_pro, {"img_size": 5}, "img_size 5"),
    ],
)
def test_screenspot_json(
    write: Any,
    change: dict[str, Any],
    reason: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write(folder / "set")
    items = json.loads(path.read_text())
    path.write_text(json.dumps([{**items[0], **change}, *items[1:]]))
    output = folder / "o.parquet"
    refused(capsys, monkeypatch, output, reason, "convert-screenspot", "--input", path, "--output", output)
    arguments = ["convert-screenspot", "--input", path, "--output", output, "--skip-bad"]
    assert command(capsys, monkeypatch, *arguments)[0] == 0
    assert len(read_rows(output)) == len(items) - 1


def test_screenspot_parquet_keeps_only_plain_fields_in_meta(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pq.read_table(write_screenspot_hf(folder / "set")).to_pylist()
    extra = {"when": pd.Timestamp("2020-01-01"), "blob": b"x", "score": float("nan"), "rank": 3}
    pq.write_table(pa.Table.from_pylist([{**row, **extra} for row in rows]), folder / "x.parquet")
    arguments = ["convert-screenspot", "--input", folder / "x.parquet", "--output", folder / "o.parquet"]
    assert command(capsys, monkeypatch, *arguments)[0] == 0
    meta = read_rows(folder / "o.parquet")[0]["meta"]
    assert meta["rank"] == 3
    assert not {"when", "blob", "score"} & meta.keys()


@pytest.mark.parametrize(
    ("questions", "annotations", "reason"),
    [
        ({"question_id": [1]}, {}, "question 0 is not VQAv2's"),
        ({"question": None}, {}, "question 0 is not VQAv2's"),
        ({"image_id": [3]}, {}, "question 0 is not VQAv2's"),
        ({"image_id": 2.5}, {}, "question 0 is not VQAv2's"),
        ({"question": LONE}, {}, "surrogates not allowed"),
        ({}, {"question_id": [5]}, "annotation 0 is not VQAv2's"),
    ],
)
def test_vqav2(
    questions: dict[str, Any],
    annotations: dict[str, Any],
    reason: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = write_vqav2_files(folder / "vqav2")
    for name, change in (("questions", questions), ("annotations", annotations)):
        value = json.loads(paths[name].read_text())
        value[name][0].update(change)
        paths[name].write_text(json.dumps(value))
    output = folder / "o.parquet"
    arguments = ["--questions", paths["questions"], "--annotations", paths["annotations"], "--output", output]
    refused(
        capsys, monkeypatch, output, reason, "convert", *arguments, "--image-dir", paths["image_dir"]
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ['{"questions": [{"a": ' + DEEP + "}]}", '{"questions": [{"question_id": ' + "9" * 5000 + "}]}"],
    ids=["deep", "long number"],
)
def test_vqav2_json_that_no_parser_takes(
    text: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "q.json").write_text(text)
    output = folder / "o.parquet"
    arguments = ["convert", "--questions", folder / "q.json", "--image-dir", folder, "--output", output]
    refused(capsys, monkeypatch, output, "q.json is not a JSON object", *arguments)


GOOD = {"id": "1", "image_path": "a.png", "question": "q", "answer": "x"}


def without(name: str) -> pa.Table:
    return pa.Table.from_pylist([{key: value for key, value in GOOD.items() if key != name}])


@pytest.mark.parametrize("reader", ["verify", "stats", "split", "sample", "show"])
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (without("question"), "no column question or problem or instruction; its columns are id, image_path, answer"),
        (without("image_path"), "no column image_paths or image_path"),
        (pa.table({}), "no column"),
        (pa.Table.from_pylist([GOOD]).slice(0, 0), "no rows"),
    ],
)
def test_readers(
    rows: pa.Table,
    reason: str,
    reader: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pq.write_table(rows, folder / "x.parquet")
    output = {
        "verify": [],
        "stats": [],
        "split": ["--output-dir", folder / "splits"],
        "sample": ["--count", 1, "--output", folder / "o.parquet"],
        "show": ["--output", folder / "o.parquet"],
    }[reader]
    refused(capsys, monkeypatch, folder / "o.parquet", reason, reader, "--file", folder / "x.parquet", *output)


def test_damaged_pages_and_meta_are_named(folder: Path) -> None:
    path = folder / "x.parquet"
    pq.write_table(pa.Table.from_pylist([{**GOOD, "question": f"question {n}"} for n in range(2000)]), path)
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(255 - byte for byte in content[4:2000])
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.parquet is damaged"):
        read_rows(path)
    pq.write_table(pa.Table.from_pylist([{**GOOD, "meta": DEEP}]), path)
    with pytest.raises(UserError, match="row 0: meta is not JSON"):
        read_rows(path)


def test_numbers_that_json_lacks_become_null_in_meta(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**GOOD, "meta": '{"a": NaN, "b": [1e999]}', "score": float("nan")}]), folder / "x.parquet")  # fmt: skip  # noqa: E501
    with pytest.raises(UserError, match="meta cannot be kept as JSON"):
        read_rows(folder / "x.parquet")
    pq.write_table(pa.Table.from_pylist([{**GOOD, "meta": '{"a": NaN}', "score": float("nan")}]), folder / "x.parquet")
    assert read_rows(folder / "x.parquet")[0]["meta"] == {"score": None, "a": None}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["verify", "--workers", "0"], "--workers 0"),
        (["verify", "--min-pixels", "100", "--max-pixels", "10"], "--min-pixels 100"),
        (["show", "--columns", "0", "--output", "o.png"], "--columns 0"),
        (["show", "--rows=-1", "--output", "o.png"], "below 0"),
        (["show", "--rows", "0,99", "--output", "o.png"], "no row 99"),
        (["show", "--count", "0", "--output", "o.png"], "--count 0"),
        (["show", "--output", "."], "cannot write"),
        (["verify", "--report", "."], "cannot write"),
        (["split", "--output-dir", "s", "--shares", "nan/20/20"], "--shares"),
        (["split", "--output-dir", "s", "--shares", "inf/20/20"], "--shares"),
        (["split", "--output-dir", "s", "--max-validation", "-3"], "--max-validation -3"),
    ],
)
def test_options(
    arguments: list[str], reason: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    pq.write_table(pa.Table.from_pylist([GOOD]), "x.parquet")
    refused(capsys, monkeypatch, folder / "o.png", reason, arguments[0], "--file", "x.parquet", *arguments[1:])


@pytest.mark.parametrize("count", ["-5", "0"])
def test_max_samples(
    count: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_vqav2_files(folder / "vqav2")
    write_screenspot_v2(folder / "v2")
    output = ["--output", folder / "o.parquet", "--max-samples", count]
    files = ["--questions", paths["questions"], "--annotations", paths["annotations"], "--image-dir", folder]
    refused(capsys, monkeypatch, folder / "o.parquet", "--max-samples", "convert", *files, *output)
    refused(
        capsys, monkeypatch, folder / "o.parquet", "--max-samples", "convert-screenspot", "--input", folder / "v2", *output
    )  # fmt: skip


def test_hundreds_of_pictures_in_a_row_are_shown_in_part(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {key: value for key, value in GOOD.items() if key != "image_path"}
    pq.write_table(pa.Table.from_pylist([{**row, "image_paths": ["a.png"] * 400}]), folder / "x.parquet")
    arguments = ["show", "--file", folder / "x.parquet", "--output", folder / "o.png"]
    assert command(capsys, monkeypatch, *arguments)[0] == 0


def test_names_that_no_file_can_have(folder: Path) -> None:
    for name in ("a" * 5000 + ".png", "nul\0.png"):
        with pytest.raises(UserError, match="not a name that can be opened"):
            open_image(folder / name)


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(folder: Path) -> None:
    (folder / "old.txt").write_text("old")
    with (
        pytest.raises(WriteError, match=r"cannot write .*old\.txt \(No space left on device\)"),
        replacing(folder / "old.txt") as temporary,
    ):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (folder / "old.txt").read_text() == "old"
    assert not list(folder.glob(".old*"))
    with pytest.raises(UserError, match="cannot write"):
        write_rows(folder, [{**GOOD, "image_path": str(folder / "a.png")}])


def test_embedded_pictures_on_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**GOOD, "image": png_bytes(picture((20, 20), 1))}]
    pq.write_table(pa.Table.from_pylist([{k: v for k, v in row.items() if k != "image_path"} for row in rows]), folder / "x.parquet")  # fmt: skip  # noqa: E501

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        list(iter_rows(get_set("custom"), Source(folder / "x.parquet", folder, folder / "images", "custom")))
