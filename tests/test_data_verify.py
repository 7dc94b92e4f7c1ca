from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import data_utils
from tests.data_samples import picture, write_screenspot_hf, write_vqav2
from vision_rl.answers.coordinates import FAMILIES
from vision_rl.data.convert import vqav2
from vision_rl.data.schema import read_rows, write_rows
from vision_rl.data.show import contact_sheet
from vision_rl.data.split import assign_splits, connected_groups, parse_shares
from vision_rl.data.verify import Checks, verify
from vision_rl.errors import UserError


def run(*arguments: Any) -> int:
    """The exit code of a `data_utils.py` command, in this process."""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        sys.argv = ["data_utils.py", *map(str, arguments)]
        data_utils.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def vqa_row(folder: Path, number: int, **change: Any) -> dict[str, Any]:
    """A good row with a picture of its own."""
    path = folder / f"{number}.png"
    if not path.exists():
        picture((60, 40), number).save(path)
    row = {"id": str(number), "image_paths": [str(path)], "question": f"what is {number}?", "answers": ["cat"]}
    return {**row, "image_sizes": [[60, 40]], **change}


def grounding_row(folder: Path, number: int, boxes: list[list[float]], **change: Any) -> dict[str, Any]:
    row = vqa_row(folder, number, **change)
    del row["answers"]
    return {**row, "task": "grounding", "boxes": boxes}


def reasons(path: Path, **options: Any) -> dict[int, str]:
    against = options.pop("against", ())
    report = verify(path, checks=Checks(**options), against=against)
    return {problem.row: problem.reason for problem in report.problems}


def _truncate(folder: Path) -> dict[str, Any]:
    row = vqa_row(folder, 1)
    path = Path(row["image_paths"][0])
    path.write_bytes(path.read_bytes()[:100])
    return row


def _copy(folder: Path) -> dict[str, Any]:
    row = vqa_row(folder, 0)
    shutil.copy(row["image_paths"][0], folder / "copy.png")
    return {**row, "id": "1", "image_paths": [str(folder / "copy.png")]}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_truncate, "damaged or incomplete"),
        (lambda folder: vqa_row(folder, 1, image_paths=["missing.png"]), "does not exist"),
        (lambda folder: vqa_row(folder, 1, image_sizes=[[40, 60]]), "image_sizes says 40 x 60"),
        (lambda folder: vqa_row(folder, 1, id="0"), "id occurs already in row 0"),
        (_copy, "repeats row 0"),
        (lambda folder: vqa_row(folder, 1, answers=[]), "no answer"),
        (lambda folder: vqa_row(folder, 1, answers=[" "]), "gold answer"),
        (lambda folder: vqa_row(folder, 1, answers=["<answer>"]), "does not parse"),
        (lambda folder: vqa_row(folder, 1, answers=["<think>a cat</think>"]), "does not parse"),
        (lambda folder: grounding_row(folder, 1, [[0.1, 0.1, 0.1, 0.5]]), "box is empty"),
        (lambda folder: grounding_row(folder, 1, [[0.5, 0.5, 0.5000014, 0.6]]), "scores 0.7"),
    ],
)
def test_bad_rows_are_found(make: Callable[[Path], dict[str, Any]], reason: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "x.parquet", [vqa_row(tmp_path, 0), make(tmp_path), vqa_row(tmp_path, 2)])
    found = reasons(tmp_path / "x.parquet")
    assert set(found) == {1}
    assert reason in found[1]


def test_rows_outside_the_schema_are_listed_not_raised(tmp_path: Path) -> None:
    good = vqa_row(tmp_path, 0)
    records = [
        {"id": "0", "image_path": good["image_paths"][0], "question": "q", "answer": "a"},
        {"id": "1", "image_path": good["image_paths"][0], "question": "", "answer": "a"},
        {"id": "2", "image_path": None, "question": "q", "answer": "a"},
    ]
    pd.DataFrame(records).to_parquet(tmp_path / "x.parquet")
    found = reasons(tmp_path / "x.parquet")
    assert set(found) == {1, 2}
    assert "question" in found[1] and "no image" in found[2]


def test_size_limits(tmp_path: Path) -> None:
    Image.new("RGB", (2, 60), "red").save(tmp_path / "narrow.png")
    Image.new("RGB", (2400, 10), "blue").save(tmp_path / "wide.png")
    rows = [
        vqa_row(tmp_path, 1, image_paths=[str(tmp_path / "narrow.png")], image_sizes=[]),
        vqa_row(tmp_path, 2, image_paths=[str(tmp_path / "wide.png")], image_sizes=[]),
        vqa_row(tmp_path, 3),
    ]
    write_rows(tmp_path / "x.parquet", rows)
    found = reasons(tmp_path / "x.parquet", limit_pixels=60 * 40)
    assert "below 4 pixels" in found[0] and "too many pixels" in found[1] and len(found) == 2
    assert "aspect ratio" in reasons(tmp_path / "x.parquet")[1]


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("answer_format", ["bbox", "click", "native"])
@pytest.mark.parametrize(
    "boxes",
    [
        [[0.1, 0.2, 0.3, 0.4]],
        [[0.0, 0.0, 1.0, 1.0]],
        [[0.51234567, 0.2, 0.52, 0.21]],
        [[0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9], [0.1, 0.1, 0.2, 0.25]],
        [],
    ],
)
def test_gold_answers_score_one_in_every_family(
    family: str, answer_format: str, boxes: list[list[float]], tmp_path: Path
) -> None:
    write_rows(tmp_path / "x.parquet", [grounding_row(tmp_path, 1, boxes)])
    assert reasons(tmp_path / "x.parquet", family=family, answer_format=answer_format) == {}


def test_what_rounding_costs_is_a_note(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.parquet", [grounding_row(tmp_path, 1, [[0.1004, 0.1004, 0.1026, 0.1026]])])
    report = verify(tmp_path / "x.parquet", checks=Checks(family="qwen3_vl", answer_format="native"))
    assert report.problems == []
    assert "cap the mean IoU" in report.notes[0]


def test_few_grey_levels_are_a_note(tmp_path: Path) -> None:
    rows = []
    for number, levels in enumerate((31, 32)):
        ramp = np.arange(64, dtype=np.uint8) * 2
        Image.fromarray(np.tile(np.minimum(ramp, 2 * levels - 2), (8, 1))).save(tmp_path / f"{number}.png")
        rows.append(grounding_row(tmp_path, number, [[0.1, 0.1, 0.5, 0.5]], image_sizes=[[64, 8]]))
    write_rows(tmp_path / "x.parquet", rows)
    report = verify(tmp_path / "x.parquet")
    assert report.problems == []
    [note] = [note for note in report.notes if "grey levels" in note]
    assert note.startswith("1 grey pictures") and "0.png, 31" in note


def test_disputed_questions_are_a_note_or_bad_by_choice(tmp_path: Path) -> None:
    disputed = vqa_row(tmp_path, 1, answers=["a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "a9", "a10"])
    agreed = vqa_row(tmp_path, 2, answers=["cat"] * 4 + ["dog"] * 3 + ["kitten"] * 3)
    write_rows(tmp_path / "x.parquet", [disputed, agreed])
    report = verify(tmp_path / "x.parquet")
    assert report.problems == []
    assert "1 questions are disputed" in report.notes[0] and "0.6500" in report.notes[0]
    assert set(reasons(tmp_path / "x.parquet", strict=True)) == {0}


def test_choices_that_no_form_tells_apart_are_a_note(tmp_path: Path) -> None:
    choices = {"twins": ["cat", "dog", "cat "], "signs": ["-5", "5", "5!"]}
    rows = [
        vqa_row(tmp_path, n, id=name, answers=["A"], choices=given) for n, (name, given) in enumerate(choices.items())
    ]
    write_rows(tmp_path / "x.parquet", rows)
    report = verify(tmp_path / "x.parquet", checks=Checks(task="vqa"))
    assert not report.problems
    assert report.notes == [
        "1 questions have choices that read alike, so that only a letter can name them (row twins: A and C)"
    ]


def test_unanswered_rows_are_allowed_for_test_splits(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.parquet", [vqa_row(tmp_path, 1, answers=[])])
    assert reasons(tmp_path / "x.parquet", allow_unanswered=True) == {}


def test_leaks_are_found_by_content(tmp_path: Path) -> None:
    leaked = vqa_row(tmp_path, 1)
    Image.open(leaked["image_paths"][0]).save(tmp_path / "other_name.bmp")
    write_rows(tmp_path / "train.parquet", [vqa_row(tmp_path, 0), leaked])
    elsewhere = vqa_row(tmp_path, 7, image_paths=[str(tmp_path / "other_name.bmp")])
    write_rows(tmp_path / "test.parquet", [vqa_row(tmp_path, 2), elsewhere])
    found = reasons(tmp_path / "train.parquet", against=[tmp_path / "test.parquet"])
    assert set(found) == {1}
    assert "test.parquet (other_name.bmp)" in found[1]


def test_without_images_nothing_is_opened(tmp_path: Path) -> None:
    row = grounding_row(tmp_path, 1, [[0.1, 0.1, 0.2, 0.2]])
    Path(row["image_paths"][0]).unlink()
    write_rows(tmp_path / "x.parquet", [row, {**row, "id": "2", "image_sizes": []}])
    found = reasons(tmp_path / "x.parquet", open_images=False)
    assert set(found) == {1}


def test_command_exit_codes_report_and_drop_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.parquet"
    write_rows(path, [vqa_row(tmp_path, 0), vqa_row(tmp_path, 1, image_paths=["no.png"]), vqa_row(tmp_path, 2)])
    clean, report = tmp_path / "deep" / "clean.parquet", tmp_path / "bad.jsonl"
    assert run("verify", "--file", path, "--drop-bad", clean, "--report", report) == 1
    out = capsys.readouterr().out
    assert "row 1 (id 1): " in out and "no.png does not exist" in out
    assert "3 rows, 3 images, 1 bad rows" in out
    assert json.loads(report.read_text())["row"] == 1
    assert [row["id"] for row in read_rows(clean)] == ["0", "2"]
    assert run("verify", "--file", clean, "--family", "qwen2_5_vl") == 0
    assert run("verify", "--file", path, "--drop-bad", path) == 1
    assert len(read_rows(path)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "--file", "missing.parquet"], "missing.parquet"),
        (["verify", "--file", "x.parquet", "--family", "gpt"], "gpt"),
        (["verify"], "--file"),
        (["stats", "--file", "missing.parquet"], "missing.parquet"),
        (["split", "--file", "x.parquet", "--output-dir", "s", "--shares", "all"], "60/20/20"),
        (["convert", "--questions", "q", "--image-dir", ".", "--output", "o"], "q"),
        (["convert", "--questions", "q", "--image-dir", "nowhere", "--output", "o"], "nowhere"),
        (["convert-screenspot", "--input", "nowhere", "--output", "o"], "nowhere"),
        (["show", "--file", "x.parquet", "--rows", "a"], "row numbers"),
    ],
)
def test_bad_input_exits_with_2_and_no_traceback(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows("x.parquet", [vqa_row(tmp_path, 0)])
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_the_guides_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = write_vqav2(tmp_path / "data" / "vqav2")
    images = tmp_path / "data" / "vqav2" / "images"
    images.mkdir()
    shutil.move(paths["image_dir"], images / "train2014")
    questions = "data/vqav2/v2_OpenEnded_mscoco_train2014_questions.json"
    annotations = "data/vqav2/v2_mscoco_train2014_annotations.json"
    command = ["convert", "--questions", questions, "--annotations", annotations]
    command += ["--image-dir", "data/vqav2/images/train2014", "--output", "data/vqav2_train.parquet"]
    assert run(*command) == 0
    assert run("verify", "--file", "data/vqav2_train.parquet") == 0
    stored = pd.read_parquet("data/vqav2_train.parquet")["image_paths"][0][0]
    assert stored.startswith("vqav2/images/train2014/COCO_train2014_")


def test_screenspot_splits_by_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_screenspot_hf(tmp_path / "hf", images=30, per_image=3)
    out = tmp_path / "out"
    command = ["convert-screenspot", "--input", source, "--local_dir", out, "--max_samples", 1200]
    assert run(*command, "--max-validation", 10) == 0
    assert "not comparable" in capsys.readouterr().out
    splits = {name: read_rows(out / f"{name}.parquet") for name in ("train", "validation", "test")}
    images = {name: {row["image_paths"][0] for row in rows} for name, rows in splits.items()}
    assert sum(map(len, splits.values())) == 90
    assert len(splits["validation"]) == 9 and len(splits["test"]) == 18
    assert not images["train"] & images["test"] and not images["train"] & images["validation"]
    others = [out / "validation.parquet", out / "test.parquet"]
    assert run("verify", "--file", out / "train.parquet", "--against", *others, "--family", "qwen2_5_vl") == 0

    first = (out / "train.parquet").read_bytes()
    assert run(*command, "--max-validation", 10) == 0
    assert (out / "train.parquet").read_bytes() == first
    assert run(*command, "--max-validation", 10, "--seed", 1) == 0
    assert (out / "train.parquet").read_bytes() != first


def test_screenspot_sample_and_whole_set(tmp_path: Path) -> None:
    source = write_screenspot_hf(tmp_path / "hf", images=10, per_image=2)
    assert run("convert-screenspot", "--input", source, "--output", tmp_path / "all.parquet") == 0
    assert len(read_rows(tmp_path / "all.parquet")) == 20
    assert run("convert-screenspot", "--input", source, "--output", tmp_path / "all.parquet", "--max-samples", 7) == 0
    assert len(read_rows(tmp_path / "all.parquet")) == 7


def test_split_keeps_copies_of_a_picture_together(tmp_path: Path) -> None:
    rows = []
    for number in range(20):
        row = vqa_row(tmp_path, number)
        shutil.copy(row["image_paths"][0], tmp_path / f"copy{number}.png")
        rows += [row, {**row, "id": f"c{number}", "image_paths": [str(tmp_path / f"copy{number}.png")]}]
    write_rows(tmp_path / "x.parquet", rows)
    assert run("split", "--file", tmp_path / "x.parquet", "--output-dir", tmp_path / "s") == 0
    splits = {name: read_rows(tmp_path / "s" / f"{name}.parquet") for name in ("train", "validation", "test")}
    assert [len(rows) for rows in splits.values()] == [24, 8, 8]
    for found in splits.values():
        ids = {row["id"] for row in found}
        assert {identity.removeprefix("c") for identity in ids} | {f"c{i}" for i in ids if i[0] != "c"} == ids
    assert run("split", "--file", tmp_path / "x.parquet", "--output-dir", tmp_path / "s", "--shares", "80/20") == 2


def test_sample_stats_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [vqa_row(tmp_path, number) for number in range(6)]
    rows += [grounding_row(tmp_path, 10, [[0.1, 0.1, 0.6, 0.6]], labels=["icon"]), grounding_row(tmp_path, 11, [])]
    rows[0]["image_paths"] *= 2
    rows[0]["image_sizes"] *= 2
    write_rows(tmp_path / "x.parquet", rows)
    assert (
        run("sample", "--file", tmp_path / "x.parquet", "--count", 3, "--output", tmp_path / "deep" / "s.parquet") == 0
    )
    sampled = read_rows(tmp_path / "deep" / "s.parquet")
    assert len(sampled) == 3 and all(Path(row["image_paths"][0]).is_file() for row in sampled)
    capsys.readouterr()
    assert run("stats", "--file", tmp_path / "x.parquet", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["rows"] == 8 and summary["task"] == {"vqa": 6, "grounding": 2}
    assert summary["no_finding_rows"] == 1 and summary["box_area"]["median"] == pytest.approx(0.25)
    assert run("show", "--file", tmp_path / "x.parquet", "--output", tmp_path / "sheet.png", "--rows", "0,6,7") == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width == 3 * 320


def test_the_sheet_draws_the_box_where_it_is(tmp_path: Path) -> None:
    Image.new("RGB", (200, 200), "white").save(tmp_path / "a.png")
    row = grounding_row(tmp_path, 1, [[0.5, 0.5, 1.0, 1.0]], image_paths=[str(tmp_path / "a.png")], labels=[""])
    sheet = contact_sheet([{**row, "labels": [""], "source": "t", "id": "1"}])
    red = [(x, y) for x in range(0, 320) for y in range(0, 256) if sheet.getpixel((x, y)) == (0xE6, 0x19, 0x4B)]
    left, top = min(x for x, _ in red), min(y for _, y in red)
    # The picture of 200 pixels is centred in a field of 304 x 240 that starts at (8, 8).
    assert abs(left - (8 + 52 + 100)) <= 2 and abs(top - (8 + 20 + 100)) <= 2


def test_a_sheet_shows_why_a_picture_is_missing(tmp_path: Path) -> None:
    row = vqa_row(tmp_path, 1, image_paths=[str(tmp_path / "no.png")])
    sheet = contact_sheet([{**row, "task": "vqa", "source": "t", "boxes": [], "labels": []}])
    assert (0xC0, 0, 0) in {sheet.getpixel((x, y)) for x in range(8, 300) for y in range(8, 60)}


keys = st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=3), min_size=1, max_size=30)


@given(keys, st.integers(0, 5), st.sampled_from([None, 0, 3]))
def test_no_image_is_ever_on_both_sides(image_keys: list[list[str]], seed: int, cap: int | None) -> None:
    shares = {"train": 60.0, "validation": 20.0, "test": 20.0}
    chosen = assign_splits(image_keys, shares, seed=seed, max_validation=cap)
    places: dict[str, set[str]] = {}
    for split, images in zip(chosen, image_keys, strict=True):
        for image in images:
            places.setdefault(image, set()).add(split)
    assert all(len(splits) == 1 for splits in places.values())
    assert chosen == assign_splits(image_keys, shares, seed=seed, max_validation=cap)
    if cap is not None:
        assert chosen.count("validation") <= cap


@given(st.integers(10, 300), st.integers(0, 5))
def test_shares_are_met(count: int, seed: int) -> None:
    chosen = assign_splits([[str(n)] for n in range(count)], {"train": 60, "validation": 20, "test": 20}, seed=seed)
    for name, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        assert abs(chosen.count(name) - share * count) <= 1.5


def test_groups_connect_through_other_rows() -> None:
    assert len(set(connected_groups([["a"], ["b"], ["a", "b"], ["c"], ["b"]]))) == 2


@pytest.mark.parametrize("text", ["", "60", "a/b", "-1/2", "0/0", "1/2/3/4"])
def test_bad_shares(text: str) -> None:
    with pytest.raises(UserError, match="60/20/20"):
        parse_shares(text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_conversion_leaves_no_half_file(number: signal.Signals, tmp_path: Path) -> None:
    paths = write_vqav2(tmp_path, images=2, per_image=1)
    out = tmp_path / "out" / "train.parquet"
    annotations = paths["annotations"]
    whole = annotations.read_text()
    annotations.unlink()
    os.mkfifo(annotations)  # the conversion reads as far as it is fed, and waits there
    command = [sys.executable, data_utils.__file__, "convert", "--questions", str(paths["questions"])]
    command += ["--annotations", str(annotations), "--image-dir", str(paths["image_dir"]), "--output", str(out)]
    # A shell starts what runs in the background with Ctrl-C ignored, and the tests may run there.
    listening = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=listening)
    with open(annotations, "w") as pipe:
        pipe.write(whole[: len(whole) // 2])
        pipe.flush()
        _wait(lambda: bool(list(tmp_path.glob("out/.train.parquet.*.tmp"))))
        process.send_signal(number)
        code = process.wait(timeout=60)
    assert code == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    left = [path.name for path in out.parent.iterdir()]
    assert "train.parquet" not in left
    if number != signal.SIGKILL:
        assert left == []
    annotations.unlink()
    annotations.write_text(whole)
    vqav2.convert(**paths, output=out)
    assert [path.name for path in out.parent.iterdir()] == ["train.parquet"]


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
