"""What radiology sets need before training: readers, stated sizes, splits by patient, empty rows, questions, DICOM."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import data_utils
from tests.data_samples import BOX, picture
from tests.dicom_files import dicom_bytes, radiograph, write_dicom
from tests.radiology_samples import siim_runs
from vision_rl.answers.boxes import Box, iou_pair
from vision_rl.answers.space import AnswerSpace
from vision_rl.data.convert.radiology_layouts import shapes_of, siim_acr
from vision_rl.data.convert.readers import fuse
from vision_rl.data.schema import read_rows, write_rows
from vision_rl.rewards.grounding import grounding_reward

HEADER = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
THREE = HEADER + "a,Mass,1,R1,20,10,60,40\na,Mass,1,R2,21,10,61,41\na,Mass,1,R3,19,9,60,40\n"


@pytest.fixture()
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """data_utils.py with some arguments: (exit code, stdout, stderr)."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["data_utils.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            data_utils.main()
        streams = capsys.readouterr()
        return int(exit_info.value.code or 0), streams.out, streams.err

    return command


def vindr(run: Any, folder: Path, table: str, *options: object, pictures: str = "ab") -> list[dict[str, Any]]:
    for name in pictures:
        picture((200, 100), ord(name)).save(folder / f"{name}.png")
    (folder / "train.csv").write_text(table)
    code, _, error = run(
        "convert", "vindr-cxr", "--input", folder / "train.csv", "--output", folder / "o.parquet", *options
    )
    assert code == 0, error
    return read_rows(folder / "o.parquet")


def test_one_perfect_box_earns_all_where_three_readers_agree(tmp_path: Path, run: Any) -> None:
    (row,) = vindr(run, tmp_path, THREE)
    assert row["boxes"] == [pytest.approx([0.1, 0.0967, 0.3017, 0.4033], abs=1e-3)]
    assert (row["labels"], row["meta"]["readers"]) == (["Mass"], [3])
    reply = AnswerSpace("click").write(row["boxes"])
    assert grounding_reward(reply, row["boxes"], AnswerSpace("click")).value == pytest.approx(1, abs=1e-3)
    assert grounding_reward(reply * 3, row["boxes"], AnswerSpace("click")).value < 0.5
    (row,) = vindr(run, tmp_path, THREE, "--readers", "union")
    assert len(row["boxes"]) == 3
    (row,) = vindr(run, tmp_path, THREE, "--readers", "R2")
    assert row["boxes"] == [pytest.approx([0.105, 0.1, 0.305, 0.41])]


def test_readers_who_contradict_each_other_make_one_row(tmp_path: Path, run: Any) -> None:
    table = (
        HEADER
        + "a,No finding,14,R1,,,,\na,Mass,1,R2,20,10,60,40\na,Nodule,1,R2,100,50,120,60\nb,No finding,14,R1,,,,\n"
    )
    rows = vindr(run, tmp_path, table, "--question", "Locate the {label}.")
    assert [(row["question"], len(row["boxes"])) for row in rows[:2]] == [
        ("Locate the Mass.", 1),
        ("Locate the Nodule.", 1),
    ]
    assert len(rows) == 3 and rows[2]["boxes"] == []
    assert rows[2]["question"] in ("Locate the Mass.", "Locate the Nodule."), (
        "the question does not give the answer away"
    )
    rows = vindr(run, tmp_path, table)
    assert [len(row["boxes"]) for row in rows] == [2, 0]
    assert {row["question"] for row in rows} == {
        "Locate every finding in this image. The findings looked for are: Mass, Nodule."
    }
    assert [len(row["boxes"]) for row in vindr(run, tmp_path, table, "--readers", "R1")] == [0, 0]


coordinate = st.floats(0, 0.6)
side = st.floats(0.05, 0.4)
drawn = st.tuples(coordinate, coordinate, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@settings(deadline=None)  # the first example imports scipy
@given(st.lists(st.tuples(drawn, st.sampled_from("mn"), st.sampled_from("123")), max_size=9))
def test_fusing_keeps_every_reader_and_never_merges_ones_own_boxes(boxes: list[tuple[Box, str, str]]) -> None:
    fused = fuse(boxes)
    assert sum(count for _, _, count in fused) == len(boxes)
    for label in "mn":
        own = [sum(reader == name for _, other, reader in boxes if other == label) for name in "123"]
        places = [count for _, other, count in fused if other == label]
        assert len(places) >= max(own) and all(count <= 3 for count in places)
    for box, _, _ in fused:
        assert 0 <= box[0] <= box[2] <= 1 and 0 <= box[1] <= box[3] <= 1


MS_CXR = "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split\n"


def ms_cxr(run: Any, folder: Path, size: tuple[int, int], *options: object) -> tuple[int, str, str]:
    rows = ""
    for number, split in enumerate(("train", "train", "test")):
        path = f"files/p10/p1000003{number % 2}/s{number}/{number}.jpg"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        picture(size, number).save(folder / path)
        rows += f"{number},Edema,edema {number},{path},200,250,200,200,2544,3056,{split}\n"
    (folder / "x.csv").write_text(MS_CXR + rows)
    result: tuple[int, str, str] = run(
        "convert", "ms-cxr", "--input", folder / "x.csv", "--output", folder / "o.parquet", *options
    )
    return result


def test_boxes_are_of_the_size_that_the_table_states(tmp_path: Path, run: Any) -> None:
    assert ms_cxr(run, tmp_path, (426, 512), "--split", "train")[0] == 0
    row = read_rows(tmp_path / "o.parquet")[0]
    assert row["boxes"] == [pytest.approx([0.0786, 0.0818, 0.1572, 0.1473], abs=1e-4)]
    code, _, error = ms_cxr(run, tmp_path, (512, 512), "--split", "train")
    assert code == 2 and "a picture of 2544 x 3056 pixels, but" in error and "another aspect" in error


def test_a_split_column_chooses_the_records(tmp_path: Path, run: Any) -> None:
    code, _, error = ms_cxr(run, tmp_path, (426, 512))
    assert code == 2 and "holds the splits train, test; choose one with --split" in error
    code, _, error = ms_cxr(run, tmp_path, (426, 512), "--split", "validation")
    assert code == 2 and "has no split validation; it has train, test" in error
    assert ms_cxr(run, tmp_path, (426, 512), "--split", "train")[0] == 0
    rows = read_rows(tmp_path / "o.parquet")
    assert [(row["question"], row["meta"]["patient"]) for row in rows] == [
        ("edema 0", "10000030"),
        ("edema 1", "10000031"),
    ]


def patients_file(folder: Path, field: str = "patient") -> Path:
    rows = []
    for number in range(60):
        path = folder / f"{number}.png"
        picture((20, 20), number).save(path)
        rows.append(
            {
                **{"id": str(number), "image_paths": [str(path)], "question": "?", "boxes": BOX},
                "meta": {field: number % 20},
            }
        )
    write_rows(folder / "all.parquet", rows)
    return folder / "all.parquet"


@pytest.mark.parametrize(("field", "options"), [("patient", []), ("subject_id", ["--group-by", "meta:subject_id"])])
def test_a_patient_is_on_one_side_of_a_split(field: str, options: list[str], tmp_path: Path, run: Any) -> None:
    file = patients_file(tmp_path, field)
    assert run("split", "--file", file, "--output-dir", tmp_path / "s", *options)[0] == 0
    sides = [
        {row["meta"][field] for row in read_rows(tmp_path / "s" / f"{name}.parquet")}
        for name in ("train", "validation", "test")
    ]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 20 and all(sides)
    code, _, error = run("split", "--file", file, "--output-dir", tmp_path / "s", "--group-by", "meta:nobody")
    assert code == 2 and "row 0 (id 0) has no meta:nobody; its meta has" in error
    code, _, error = run("split", "--file", file, "--output-dir", tmp_path / "s", "--group-by", "patient")
    assert code == 2 and "neither content, path nor meta:FIELD" in error


def test_verify_finds_a_patient_on_both_sides(tmp_path: Path, run: Any) -> None:
    rows = read_rows(patients_file(tmp_path))
    write_rows(tmp_path / "train.parquet", rows[:21])
    write_rows(tmp_path / "test.parquet", rows[21:40])
    code, out, _ = run("verify", "--file", tmp_path / "train.parquet", "--against", tmp_path / "test.parquet")
    assert code == 1 and out.count("is also in") == 19 and "its patient 1 of custom is also in" in out


@pytest.mark.parametrize(
    ("rule", "empty", "rows"),
    [("keep", 6, 8), ("drop", 0, 2), ("share=0.5", 2, 4), ("share=0", 0, 2), ("share=0.9", 6, 8)],
)
def test_empty_rows_are_chosen(rule: str, empty: int, rows: int, tmp_path: Path, run: Any) -> None:
    names = "abcdefgh"
    table = HEADER + "".join(
        f"{name},Mass,1,R1,20,10,60,40\n" if name in "cf" else f"{name},No finding,14,R1,,,,\n" for name in names
    )
    found = vindr(run, tmp_path, table, "--empty", rule, pictures=names)
    assert (len(found), sum(not row["boxes"] for row in found)) == (rows, empty)
    arguments = ["--input", tmp_path / "train.csv", "--output", tmp_path / "x.parquet", "--empty"]
    code, _, error = run("convert", "vindr-cxr", *arguments, "keep")
    assert code == 0 and "6 of 8 rows have nothing to find: a model that always says so earns 0.75" in error
    code, _, error = run("convert", "vindr-cxr", *arguments, "half")
    assert code == 2 and "--empty half is neither keep, drop nor a share" in error


@pytest.mark.parametrize("ending", [".dcm", ".dicom", ""])
def test_dicom_by_name_becomes_png_beside_the_parquet(ending: str, tmp_path: Path, run: Any) -> None:
    write_dicom(tmp_path / "in" / f"a{ending}", radiograph(200, 100), PhotometricInterpretation="MONOCHROME1")
    (tmp_path / "train.csv").write_text(THREE)
    arguments = [
        "--input",
        tmp_path / "train.csv",
        "--image-dir",
        tmp_path / "in",
        "--output",
        tmp_path / "out/o.parquet",
    ]
    code, _, error = run("convert", "vindr-cxr", *arguments)
    assert code == 0, error
    (row,) = read_rows(tmp_path / "out" / "o.parquet")
    path = Path(row["image_paths"][0])
    assert path.parent == tmp_path / "out" / "images" and path.suffix == ".png" and row["image_sizes"] == [[200, 100]]
    assert run("verify", "--file", tmp_path / "out" / "o.parquet")[0] == 0


@pytest.mark.parametrize(
    ("content", "table", "reason"),
    [
        (dicom_bytes(radiograph(200, 100), PixelData=None), THREE, "holds no pixels"),
        (dicom_bytes(radiograph(200, 100), NumberOfFrames=2), THREE, "has 2 frames; choose one with --frame"),
        (dicom_bytes(radiograph(200, 100))[:-99], THREE, "damaged or incomplete"),
        (None, THREE, "a does not exist, nor with"),
        (dicom_bytes(radiograph(200, 100)), HEADER + "a,Mass,1,R1,300,10,400,40\n", "lies mostly outside"),
        (dicom_bytes(radiograph(200, 100)), HEADER + "a,Mass,1,R1,60,10,20,40\n", "empty or has swapped corners"),
        (dicom_bytes(radiograph(200, 100)), HEADER + "a,Mass,1,R1,60,10,60,40\n", "empty or has swapped corners"),
        (dicom_bytes(radiograph(200, 100)), HEADER + "a,Mass,1,R1,60,10,,\n", "fills in only a part of its box"),
    ],
)
def test_bad_input_names_file_and_row_and_is_left_out(
    content: bytes | None, table: str, reason: str, tmp_path: Path, run: Any
) -> None:
    (tmp_path / "train.csv").write_text(table + "z,Mass,1,R1,20,10,60,40\n")
    picture((200, 100), 1).save(tmp_path / "z.png")
    if content is not None:
        (tmp_path / "a.dcm").write_bytes(content)
    arguments = ["convert", "vindr-cxr", "--input", tmp_path / "train.csv", "--output", tmp_path / "o.parquet"]
    code, _, error = run(*arguments)
    assert (code, error.count("\n")) == (2, 1), error
    assert reason in error and f"{tmp_path / 'train.csv'}, record 0" in error and "--skip-bad" in error
    code, out, error = run(*arguments, "--skip-bad")
    assert code == 0 and "1 rows, 1 left out" in out and f"left out: {tmp_path / 'train.csv'}, record 0" in error


def test_run_lengths_become_boxes_and_outlines() -> None:
    (flat,) = siim_acr({"ImageId": "a", " EncodedPixels": siim_runs(100, 50, 300, 90)})
    assert flat["boxes"] == [[100, 50, 300, 90]]
    mask = np.zeros((100, 200), np.uint8)
    mask[10:40, 20:60], mask[50:90, 100:140], mask[0, 0] = 1, 1, 1
    mask[20:30, 30:40] = 0  # a hole
    boxes, polygons = shapes_of(mask)
    assert boxes == [[20, 10, 60, 40], [100, 50, 140, 90]], "specks are left out"
    for box, polygon in zip(boxes, polygons, strict=True):
        xs, ys = zip(*polygon, strict=True)
        assert [min(xs), min(ys), max(xs), max(ys)] == box


def test_iou_of_neighbours_that_one_reader_drew_is_no_reason_to_merge() -> None:
    one, two = (0.1, 0.1, 0.3, 0.3), (0.25, 0.1, 0.45, 0.3)
    assert iou_pair(one, two) > 0.1
    assert sorted(box for box, _, _ in fuse([(one, "m", "1"), (two, "m", "1"), (one, "m", "2")])) == [
        pytest.approx(one),
        pytest.approx(two),
    ]


def test_a_png_made_from_dicom_has_its_grey_levels(tmp_path: Path) -> None:
    from vision_rl.media.dicom import dicom_png

    path = dicom_png(write_dicom(tmp_path / "a.dcm", radiograph()), tmp_path / "out")
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert len(np.unique(np.asarray(image))) > 190
