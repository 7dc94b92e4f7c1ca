from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_samples import (
    picture,
    png_bytes,
    write_coco,
    write_screenspot_hf,
    write_screenspot_pro,
    write_screenspot_v2,
    write_vindr,
    write_vqav2,
)
from vision_rl.data.convert import box_sets, screenspot, vqav2
from vision_rl.data.convert.box_sets import BoxOptions
from vision_rl.data.convert.data_set import Source, iter_rows
from vision_rl.data.convert.geometry import to_unit_xyxy
from vision_rl.data.convert.json_stream import iter_array
from vision_rl.data.convert.sets import get_set
from vision_rl.data.schema import read_rows, write_rows
from vision_rl.errors import UserError
from vision_rl.media.images import open_image


@settings(deadline=None)  # a loaded machine takes longer than hypothesis' 200 ms
@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=20) | st.none(), max_size=4)),
    st.dictionaries(
        st.sampled_from(["info", "n", "x", "list"]), st.integers() | st.lists(st.text(max_size=5)), max_size=3
    ),
    st.integers(1, 50),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_stream_equals_json_load(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[dict[str, Any]],
    others: dict[str, Any],
    window: int,
    first: bool,
    indent: int | None,
) -> None:
    whole = {"items": items, **others} if first else {**others, "items": items}
    path = tmp_path_factory.getbasetemp() / "stream.json"
    path.write_text(json.dumps(whole, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert list(iter_array(path, "items", window=window)) == items
    path.write_text(json.dumps(items, indent=indent), encoding="utf-8")
    assert list(iter_array(path, None, window=window)) == items


def test_ijson_would_change_a_broken_text_in_silence(tmp_path: Path) -> None:
    """Why the stream is our own code: when this fails, ijson's quick backend has been mended and can take its place."""
    backend = pytest.importorskip("ijson").get_backend("yajl2_c")
    path = tmp_path / "half.json"
    path.write_bytes(b'[{"a": "\\ud83d!"}]')
    with open(path, "rb") as file:
        assert list(backend.items(file, "item")) == [{"a": "?!"}]
    assert list(iter_array(path, None)) == [{"a": "\ud83d!"}], "which the schema refuses when the row is written"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"other": []}',
        '{"items": 3}',
        '{"items": [1]}',
        '{"items": [{"a": 1}',
        '{"items": [{"a": 1} {"a": 2}]}',
        '{"items": [{"a": 1},]}',
        '{"items": [{"a": }]}',
        "<html>",
        "\udcff",
    ],
)
def test_stream_rejects(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"x\.json"):
        list(iter_array(path, "items"))


def test_stream_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.json"):
        list(iter_array(tmp_path / "missing.json", "items"))


def test_vqav2_keeps_all_ten_answers_and_the_official_fields(tmp_path: Path) -> None:
    paths = write_vqav2(tmp_path, images=4, per_image=3)
    result = vqav2.convert(**paths, output=tmp_path / "train.parquet")
    assert result.rows == 12
    rows = {row["id"]: row for row in read_rows(tmp_path / "train.parquet")}
    row = rows["262145002"]
    assert row["answers"] == ["net"] * 8 + ["the court"] * 2
    assert row["question"] == "What is this 2?"
    assert row["meta"] == {
        "question_id": 262145002,
        "image_id": 262145,
        "question_type": "what is this",
        "answer_type": "other",
        "multiple_choice_answer": "net",
    }
    assert row["image_paths"] == [str(paths["image_dir"] / "COCO_train2014_000000262145.jpg")]
    assert row["image_sizes"] == [[64, 48]]
    assert row["source"] == "vqav2"
    stored = pd.read_parquet(tmp_path / "train.parquet")["image_paths"][0][0]
    assert stored.startswith("train2014/COCO_train2014_")


def test_vqav2_equals_a_plain_conversion(tmp_path: Path) -> None:
    paths = write_vqav2(tmp_path, images=7, per_image=5)
    vqav2.convert(**paths, output=tmp_path / "train.parquet")
    asked = {q["question_id"]: q for q in json.loads(paths["questions"].read_text())["questions"]}
    expected = {
        str(a["question_id"]): (asked[a["question_id"]]["question"], [answer["answer"] for answer in a["answers"]])
        for a in json.loads(paths["annotations"].read_text())["annotations"]
    }
    assert {r["id"]: (r["question"], r["answers"]) for r in read_rows(tmp_path / "train.parquet")} == expected


def test_vqav2_test_split_has_no_annotations(tmp_path: Path) -> None:
    paths = write_vqav2(tmp_path)
    vqav2.convert(paths["questions"], None, paths["image_dir"], tmp_path / "test.parquet", max_samples=5)
    rows = read_rows(tmp_path / "test.parquet")
    assert len(rows) == 5 and all(row["answers"] == [] for row in rows)


def test_vqav2_missing_pictures(tmp_path: Path) -> None:
    paths = write_vqav2(tmp_path, images=4, per_image=3)
    (paths["image_dir"] / "COCO_train2014_000000262146.jpg").unlink()
    out = tmp_path / "train.parquet"
    with pytest.raises(UserError, match="262146"):
        vqav2.convert(**paths, output=out)
    assert not out.exists()
    assert vqav2.convert(**paths, output=out, missing_images="skip") == vqav2.Conversion(9, 3)
    assert vqav2.convert(**paths, output=out, missing_images="keep").rows == 12
    kept = {row["meta"]["image_id"]: row for row in read_rows(out)}[262146]
    assert kept["image_paths"] == [str(paths["image_dir"] / "COCO_train2014_000000262146.jpg")]
    assert kept["image_sizes"] == []


def _drop_question(data: dict[str, Any]) -> None:
    data["questions"].pop()


def _add_question(data: dict[str, Any]) -> None:
    data["questions"].append({"image_id": 262144, "question": "Extra?", "question_id": 1})


def _repeat_question(data: dict[str, Any]) -> None:
    data["questions"].append(data["questions"][0])


def _rename_field(data: dict[str, Any]) -> None:
    data["questions"][0].pop("image_id")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_drop_question, "no unanswered question"),
        (_add_question, "no annotation for 1 questions"),
        (_repeat_question, "occurs twice"),
        (_rename_field, "has no 'image_id'"),
    ],
)
def test_vqav2_files_that_do_not_belong_together(damage: Any, reason: str, tmp_path: Path) -> None:
    paths = write_vqav2(tmp_path)
    data = json.loads(paths["questions"].read_text())
    damage(data)
    paths["questions"].write_text(json.dumps(data))
    with pytest.raises(UserError, match=reason):
        vqav2.convert(**paths, output=tmp_path / "train.parquet")
    assert not list(tmp_path.glob("*.parquet")) and not list(tmp_path.glob(".*.tmp"))


def test_vqav2_answers_in_another_layout(tmp_path: Path) -> None:
    paths = write_vqav2(tmp_path)
    data = json.loads(paths["annotations"].read_text())
    data["annotations"][0]["answers"] = ["net"] * 10
    paths["annotations"].write_text(json.dumps(data))
    with pytest.raises(UserError, match="not in VQAv2's layout"):
        vqav2.convert(**paths, output=tmp_path / "train.parquet")


def rows_of(tmp_path: Path, rows: Any) -> list[dict[str, Any]]:
    write_rows(tmp_path / "out.parquet", rows)
    return read_rows(tmp_path / "out.parquet")


def test_screenspot_hf_writes_each_picture_once(tmp_path: Path) -> None:
    write_screenspot_hf(tmp_path / "hf", images=6, per_image=2)
    rows = rows_of(tmp_path, screenspot.iter_rows(tmp_path / "hf", image_dir=None, extract_dir=tmp_path / "images"))
    assert len(rows) == 12
    assert len(list((tmp_path / "images").iterdir())) == 6
    assert rows[1]["boxes"] == [pytest.approx([0.3, 0.25, 0.4, 0.5])]
    assert rows[1]["image_sizes"] == [[80, 60]]
    assert rows[1]["labels"] == ["icon"]
    platforms = [row["meta"]["platform"] for row in rows[::2]]
    assert platforms == ["mobile", "mobile", "desktop", "desktop", "web", "web"]
    assert rows[0]["meta"]["data_source"] == "ios"
    assert Path(rows[0]["image_paths"][0]).read_bytes() == png_bytes(picture((80, 60), 0))


def test_screenspot_v2_is_xywh_pixels(tmp_path: Path) -> None:
    path = write_screenspot_v2(tmp_path / "v2")
    rows = rows_of(tmp_path, screenspot.iter_rows(path, image_dir=None, extract_dir=tmp_path))
    assert len(rows) == 6
    assert rows[1]["boxes"] == [pytest.approx([60 / 200, 0.1, 100 / 200, 0.3])]
    assert (rows[1]["source"], rows[1]["meta"]["platform"]) == ("screenspot-v2", "desktop")


def test_screenspot_pro_is_xyxy_pixels(tmp_path: Path) -> None:
    write_screenspot_pro(tmp_path / "pro")
    rows = rows_of(tmp_path, screenspot.iter_rows(tmp_path / "pro", image_dir=None, extract_dir=tmp_path))
    assert [row["id"] for row in rows] == ["blender_windows_0", "blender_windows_1"]
    assert rows[0]["boxes"] == [pytest.approx([0.1, 0.1, 0.2, 0.2])]
    assert rows[0]["source"] == "screenspot-pro"
    assert rows[0]["meta"]["data_type"] == "icon"
    assert (rows[0]["meta"]["group"], rows[0]["meta"]["application"]) == ("Creative", "blender")


def test_screenspot_bad_items_stop_or_are_listed(tmp_path: Path) -> None:
    path = write_screenspot_v2(tmp_path / "v2")
    items = json.loads(path.read_text())
    items[0]["bbox"] = [500, 10, 40, 20]
    items[1]["img_filename"] = "missing.png"
    items[2]["bbox"] = [10, 10, 0, 20]
    del items[3]["instruction"]
    path.write_text(json.dumps(items))
    with pytest.raises(UserError, match=r"item 0.*outside"):
        list(screenspot.iter_rows(path, image_dir=None, extract_dir=tmp_path))
    reasons: list[str] = []
    rows = list(screenspot.iter_rows(path, image_dir=None, extract_dir=tmp_path, on_bad=reasons.append))
    assert len(rows) == 2
    for reason, part in zip(reasons, ["outside", "missing.png", "empty", "no instruction"], strict=True):
        assert part in reason


def test_screenspot_pro_read_as_v2_is_noticed_by_its_size_field(tmp_path: Path) -> None:
    path = write_screenspot_pro(tmp_path / "pro")
    items = json.loads(path.read_text())
    items[0]["img_size"] = [800, 400]
    path.write_text(json.dumps(items))
    with pytest.raises(UserError, match="img_size"):
        list(screenspot.iter_rows(path, image_dir=None, extract_dir=tmp_path))


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense", '[{"a": 1}]', "[3]"])
def test_screenspot_rejects_other_json(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json"):
        list(screenspot.iter_rows(tmp_path / "x.json", image_dir=None, extract_dir=tmp_path))


def boxes(tmp_path: Path, path: Path, **options: Any) -> list[dict[str, Any]]:
    chosen = BoxOptions(image_dir=path.parent / "images", extract_dir=tmp_path / "extracted", **options)
    return rows_of(tmp_path, box_sets.iter_rows(path, chosen))


def test_coco_one_row_per_picture(tmp_path: Path) -> None:
    rows = boxes(tmp_path, write_coco(tmp_path / "coco"))
    assert [len(row["boxes"]) for row in rows] == [2, 0, 0]
    assert rows[0]["boxes"][1] == pytest.approx([0.5, 0.5, 1.0, 1.0])
    assert rows[0]["labels"] == ["nodule", "effusion"]
    assert rows[1]["task"] == "grounding"


def test_coco_one_row_per_label(tmp_path: Path) -> None:
    rows = boxes(tmp_path, write_coco(tmp_path / "coco"), question="Locate the {label}.")
    questions = [row["question"] for row in rows]
    assert questions == ["Locate the nodule.", "Locate the effusion."] + [row["question"] for row in rows[2:]]
    assert {row["question"] for row in rows[2:]} <= set(questions[:2]), (
        "the question must not tell that there is nothing"
    )
    assert [len(row["boxes"]) for row in rows] == [1, 1, 0, 0]
    assert rows[0]["boxes"] == [pytest.approx([0.1, 0.2, 0.3, 0.6])]
    assert rows[0]["labels"] == ["nodule"]


def test_vindr_csv(tmp_path: Path) -> None:
    rows = boxes(tmp_path, write_vindr(tmp_path / "vindr"), space="pixels")
    assert [row["labels"] for row in rows] == [["Cardiomegaly", "Aortic enlargement"], []]
    assert rows[0]["boxes"][0] == pytest.approx([0.2, 0.3, 0.6, 0.8])
    assert rows[1]["boxes"] == []
    assert rows[1]["image_paths"][0].endswith("img1.png")
    per_label = boxes(tmp_path, tmp_path / "vindr" / "train.csv", space="pixels", question="Where is the {label}?")
    assert [len(row["boxes"]) for row in per_label] == [1, 1, 0]
    assert per_label[2]["question"] in {row["question"] for row in per_label[:2]}


def test_ms_cxr_csv_groups_by_sentence(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    picture((200, 100), 1).save(tmp_path / "images" / "a.png")
    path = tmp_path / "ms_cxr.csv"
    path.write_text(
        "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height\n"
        "d1,Edema,bilateral edema,a.png,20,10,40,20,200,100\n"
        "d1,Edema,bilateral edema,a.png,100,50,50,50,200,100\n"
        "d1,Pneumonia,left pneumonia,a.png,0,0,10,10,200,100\n"
    )
    rows = boxes(tmp_path, path, space="pixels", image_field="path")
    assert [(row["question"], len(row["boxes"])) for row in rows] == [("bilateral edema", 2), ("left pneumonia", 1)]
    assert rows[0]["boxes"][1] == pytest.approx([0.5, 0.5, 0.75, 1.0])


@pytest.mark.parametrize(
    ("numbers", "space", "box_format"),
    [
        ([20, 10, 60, 30], "pixels", "xyxy"),
        ([20, 10, 40, 20], "pixels", "xywh"),
        ([0.1, 0.1, 0.3, 0.3], "unit", "xyxy"),
        ([0.1, 0.1, 0.2, 0.2], "unit", "xywh"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_all_spaces_and_files(suffix: str, numbers: list[float], space: str, box_format: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    picture((200, 100), 1).save(tmp_path / "images" / "a.png")
    path = tmp_path / f"set{suffix}"
    record = {"image": "a.png", "instruction": "the nodule", "boxes": [numbers, numbers], "labels": ["l", "r"]}
    if suffix == ".json":
        path.write_text(json.dumps([record]))
    elif suffix == ".jsonl":
        path.write_text(json.dumps(record) + "\n\n")
    elif suffix == ".csv":
        cells = {**record, "boxes": json.dumps(record["boxes"]), "labels": "l"}
        pd.DataFrame([cells]).to_csv(path, index=False)
    else:
        pd.DataFrame([{**record, "image": {"bytes": png_bytes(picture((200, 100), 1)), "path": None}}]).to_parquet(path)
    (row,) = boxes(tmp_path, path, space=space, box_format=box_format)
    assert row["boxes"] == [pytest.approx([0.1, 0.1, 0.3, 0.3])] * 2
    assert row["labels"] == (["l", "l"] if suffix == ".csv" else ["l", "r"])
    assert row["question"] == "the nodule"


@pytest.mark.parametrize(
    ("record", "options", "reason"),
    [
        ({"image": "a.png", "bbox": [1, 2, 3, 4]}, {"box_format": "xyxy"}, "--space"),
        ({"image": "a.png", "bbox": [1, 2, 3, 4]}, {"space": "pixels"}, "--box-format"),
        ({"image": "a.png", "bbox": [1, 2, 3]}, {"space": "pixels", "box_format": "xyxy"}, "four numbers"),
        ({"image": "a.png", "bbox": [9, 9, 3, 4]}, {"space": "pixels", "box_format": "xyxy"}, "swapped"),
        ({"image": "a.png", "bbox": [1, 2, 30, 40]}, {"space": "unit", "box_format": "xyxy"}, "outside"),
        ({"image": "b.png", "bbox": [1, 2, 3, 4]}, {"space": "pixels", "box_format": "xyxy"}, r"b\.png does not exist"),
        ({"picture": "a.png"}, {}, "--image-field"),
        (
            {"image": "a.png", "boxes": [[1, 2, 3, 4]], "labels": ["a", "b"]},
            {"space": "pixels", "box_format": "xyxy"},
            "2 labels for 1 boxes",
        ),
    ],
)
def test_box_sets_ask_instead_of_guessing(
    record: dict[str, Any], options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    picture((50, 50), 1).save(tmp_path / "images" / "a.png")
    (tmp_path / "set.json").write_text(json.dumps([record]))
    with pytest.raises(UserError, match=reason):
        boxes(tmp_path, tmp_path / "set.json", **options)


finite = st.floats(0, 1000, allow_nan=False)


@given(finite, finite, st.floats(1, 1000), st.floats(1, 1000), st.integers(1, 3000), st.integers(1, 3000))
def test_boxes_in_unit_space_are_inside_and_keep_their_place(
    x: float, y: float, w: float, h: float, width: int, height: int
) -> None:
    def convert(numbers: list[float], box_format: str) -> list[float] | None:
        try:
            return to_unit_xyxy(numbers, (width, height), box_format=box_format, space="pixels", where="t")
        except UserError:
            return None

    one, two = convert([x, y, w, h], "xywh"), convert([x, y, x + w, y + h], "xyxy")
    assert one == two
    if one is not None:
        assert all(0 <= number <= 1 for number in one) and one[0] <= one[2] and one[1] <= one[3]
        if x + w <= width and y + h <= height:
            assert np.allclose(np.array(one) * [width, height, width, height], [x, y, x + w, y + h])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite(bad: float) -> None:
    with pytest.raises(UserError, match="finite"):
        to_unit_xyxy([0, 0, bad, 1], (10, 10), box_format="xyxy", space="pixels", where="t")


def custom_rows(tmp_path: Path, path: Path, **options: Any) -> list[dict[str, Any]]:
    source = Source(path, tmp_path, tmp_path / "images", "custom", **options)
    return rows_of(tmp_path, iter_rows(get_set("custom"), source))


def test_custom_csv_with_one_and_several_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture((30, 20), ord(name[0])).save(tmp_path / name)
    path = tmp_path / "qa.csv"
    lists = '"[""left"", ""the left""]","[""a.png"", ""b.png""]"'
    path.write_text(f"id,question,answer,image,ward\n1,what?,cat,a.png,B\n2,which?,{lists},\n")
    one, two = custom_rows(tmp_path, path)
    assert (one["answers"], one["meta"], one["media"]) == (["cat"], {"ward": "B"}, "images")
    assert two["answers"] == ["left", "the left"]
    assert [Path(image).name for image in two["image_paths"]] == ["a.png", "b.png"]
    assert two["image_sizes"] == [[30, 20], [30, 20]]


def test_custom_jsonl_with_frames_and_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", frames=20)
    picture((30, 20), 1).save(tmp_path / "f0.png")
    records = [
        {"question": "q", "answers": ["a"], "frames": ["f0.png", "f0.png"]},
        {"question": "q", "answer": "a", "video": "clip.mp4"},
    ]
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    frames, video = custom_rows(tmp_path, path, frames=4)
    assert frames["media"] == video["media"] == "video"
    assert len(video["image_paths"]) == 4
    brightness = [np.asarray(open_image(image)).mean() for image in video["image_paths"]]
    assert brightness == sorted(brightness)
    assert brightness[0] == pytest.approx(2 * 10, abs=6) and brightness[3] == pytest.approx(17 * 10, abs=6)
    assert video["image_sizes"] == [[64, 48]] * 4


@pytest.mark.parametrize("field", ["video", "frames"])
def test_a_folder_of_frames_is_a_video(field: str, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for number in range(12):
        picture((30, 20), number).save(tmp_path / "clip" / f"frame_{number}.png")
    (tmp_path / "clip" / "notes.txt").write_text("no picture")
    (tmp_path / "qa.jsonl").write_text(json.dumps({"question": "q", "answer": "a", field: "clip"}))
    [row] = custom_rows(tmp_path, tmp_path / "qa.jsonl", frames=3)
    assert [Path(path).name for path in row["image_paths"]] == ["frame_2.png", "frame_6.png", "frame_10.png"]
    assert row["media"] == "video" and row["image_sizes"] == [[30, 20]] * 3
    [row] = custom_rows(tmp_path, tmp_path / "qa.jsonl", frames=20)
    assert [Path(path).name for path in row["image_paths"]] == [f"frame_{number}.png" for number in range(12)]


def write_video(path: Path, *, frames: int) -> None:
    """Frame n is grey of 10 * n."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * number, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"answer": "a", "image": "a.png"}, "no question"),
        ({"question": "q", "image": "a.png"}, "no answers"),
        ({"question": "q", "answer": "a"}, "image"),
        ({"question": "q", "answer": "a", "image": "b.png"}, r"b\.png does not exist"),
        ({"question": "q", "answer": "a", "images": []}, "empty list"),
        ({"question": "q", "answer": "a", "video": "no.mp4"}, r"no\.mp4 does not exist"),
        ({"question": "q", "answer": "a", "video": "a.png.txt"}, "cannot be decoded"),
        ({"question": "q", "answer": "a", "video": "empty"}, r"empty holds no pictures"),
    ],
)
def test_custom_rejects(record: dict[str, Any], reason: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    picture((30, 20), 1).save(tmp_path / "a.png")
    (tmp_path / "a.png.txt").write_text("not a video")
    (tmp_path / "qa.json").write_text(json.dumps([record]))
    with pytest.raises(UserError, match=reason):
        custom_rows(tmp_path, tmp_path / "qa.json")


@pytest.mark.parametrize("name", ["x.xlsx", "x.csv", "x.json", "x.jsonl", "x.parquet"])
def test_unreadable_inputs_are_user_errors(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bytes(random.Random(0).randrange(256) for _ in range(200)))
    with pytest.raises(UserError, match="x"):
        custom_rows(tmp_path, tmp_path / name)
    with pytest.raises(UserError, match="x"):
        boxes(tmp_path, tmp_path / name, space="pixels", box_format="xyxy")
