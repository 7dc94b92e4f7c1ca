"""Every set that `data_utils.py convert` knows: a file in its published layout converts, verifies, and says what is wrong."""

from __future__ import annotations

import base64
import csv
import json
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import data_utils
from tests import data_samples
from tests.data_samples import BOX, Sample, picture, png_bytes, said, shot, write_vqav2
from tests.radiology_samples import RADIOLOGY_SAMPLES
from vision_rl.answers.choices import choices_of
from vision_rl.data.convert.sets import SETS, sets_table
from vision_rl.data.schema import read_rows
from vision_rl.media.images import open_image
from vision_rl.rewards.metrics import METRICS

SAMPLES = {**data_samples.SAMPLES, **RADIOLOGY_SAMPLES}
NAMES = sorted(SAMPLES)


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


def one_sentence(result: tuple[int, str, str], *parts: str) -> None:
    """The command was refused with one sentence that has all `parts`."""
    code, _, error = result
    assert (code, error.count("\n")) == (2, 1), error
    assert error.startswith("error: ")
    for part in parts:
        assert part in error


def turns(answer: str) -> list[dict[str, str]]:
    """A conversation of one question and its answer."""
    return [{"from": "human", "value": "x"}, {"from": "gpt", "value": answer}]


def test_every_set_has_a_sample() -> None:
    assert set(SAMPLES) | {"vqav2"} == set(SETS)


@pytest.mark.parametrize("name", NAMES)
def test_a_published_file_converts_and_verifies(name: str, tmp_path: Path, run: Any) -> None:
    output = tmp_path / "out" / "x.parquet"
    code, _, error = run("convert", name, "--output", output, *SAMPLES[name].write(tmp_path / "set"))
    assert code == 0, error
    rows = read_rows(output)
    assert len(rows) == len(SAMPLES[name].expected)
    for row, expected in zip(rows, SAMPLES[name].expected, strict=True):
        assert row["source"] == name
        assert (row["task"], row["image_sizes"]) == (
            SETS[name].task,
            [list(SAMPLES[name].size)] * len(row["image_paths"]),
        )
        for field, value in expected.items():
            if field == "meta":
                assert value.items() <= row["meta"].items()
            else:
                assert row[field] == ([pytest.approx(box) for box in value] if field == "boxes" else value)
    code, out, error = run("verify", "--file", output)
    assert code == 0, out + error


@pytest.mark.parametrize("name", NAMES)
def test_its_folder_does_too_whatever_lies_beside_it(name: str, tmp_path: Path, run: Any) -> None:
    arguments = SAMPLES[name].write(tmp_path / "set")
    folder = Path(arguments[1]).parent
    pq.write_table(pa.table({"other": [1]}), folder / "a_first.parquet")
    arguments[1] = str(folder)
    for _ in range(2):  # the second time our own output lies beside it
        code, _, error = run("convert", name, "--output", folder / "b_out.parquet", *arguments)
        assert code == 0, error
        assert len(read_rows(folder / "b_out.parquet")) == len(SAMPLES[name].expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_column_is_one_sentence(name: str, tmp_path: Path, run: Any) -> None:
    """A file of another layout names the file, the record and the fields that it has."""
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"bild": "a.png", "frage": "was?"}) + "\n")
    if name.startswith("screenspot"):
        path = path.rename(tmp_path / "x.json")
        path.write_text(json.dumps([{"bild": "a.png"}]))
    output = tmp_path / "o.parquet"
    one_sentence(run("convert", name, "--input", path, "--output", output), path.name)
    said = run("convert", name, "--input", path, "--output", output)[2]
    assert "its fields are bild" in said or "it has bild" in said or "layout of" in said or "has no bbox" in said, said
    assert not output.exists()


@pytest.mark.parametrize("name", [name for name in NAMES if SAMPLES[name].pictures])
def test_a_missing_picture_is_one_sentence(name: str, tmp_path: Path, run: Any) -> None:
    arguments = SAMPLES[name].write(tmp_path)
    for picture_name in SAMPLES[name].pictures:
        (tmp_path / picture_name).unlink()
    output = tmp_path / "o.parquet"
    one_sentence(run("convert", name, "--output", output, *arguments), "does not exist", "--image-dir", "--skip-bad")
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (
            "uground",
            {"conversations": json.dumps(turns("(1, 2)"))},
            "is a point without a box; take osunlp/UGround-V1-Data-Box",
        ),
        ("uground", {"conversations": json.dumps([{"from": "human", "value": "x"}])}, "not in the layout of UGround"),
        ("uground", {"conversations": json.dumps(turns("top left"))}, "is not four numbers"),
        ("osworld-g", {"box_type": "circle"}, "box_type is 'circle', expected bbox, polygon or refusal"),
        ("osworld-g", {"box_type": "polygon", "box_coordinates": [1, 2, 3, 4]}, "three or more points"),
        ("osworld-g", {"image_size": [1920, 1080]}, "the file says 1920 x 1080 pixels, but the picture has 200 x 100"),
        ("os-atlas", {"bbox": [20, 10, 60, 40]}, "lies mostly outside"),
        ("visual-genome", {"regions": [{"phrase": "x", "x": 0}]}, "not in the layout of Visual Genome"),
        ("vlm-r1", {"conversations": turns("a dog")}, "layout of VLM-R1"),
        ("llava", {"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]}, "human and gpt"),
        ("refcoco", {"bbox": [20.0, 10.0]}, "is not four numbers"),
        ("ai2d", {"answer": "4"}, "no number from 0 to 3"),
        ("mathvista", {"answer": "maybe", "choices": ["no", "yes"]}, "is the text of 0 of its choices"),
        ("mmmu", {"options": "['a', "}, "not in the layout of MMMU"),
        ("custom", {"choices": ["B", "A"]}, "a letter and the text of another choice; say which with --answer-as"),
        ("custom", {"answer": "green"}, "neither a letter from A to B nor the text of one choice"),
        ("custom", {"choices": ["red"]}, "expected 2 to 26 texts"),
        ("scienceqa", {"image": None}, "it has no image"),
        (
            "slake",
            {"answer": ""},
            "its answer is empty; fill it in, or leave such records out with --skip-bad, or pass",
        ),
        ("custom", {"image": None}, "its image is empty; fill it in, or leave such records out with --skip-bad"),
        ("custom", {"image": "https://example.org/a.png"}, "is an address in the network; download the pictures first"),
        ("custom", {"image": "https:/example.org/a.png"}, "is an address in the network; download the pictures first"),
        ("custom", {"image": "s3://bucket/a.png"}, "is an address in the network; download the pictures first"),
        ("custom", {"image": "data:image/png,abc"}, "a data: URI that is not in base64"),
        ("custom", {"image": "data:image/png;base64,abcde"}, "is base64 that is cut off or damaged"),
        ("custom", {"image": "data:image/png;base64,aGVsbG8="}, "is not a picture in a known format"),
        ("custom", {"choices": {"A": "red", "C": "blue"}}, "its choices go by A, C, expected the letters from A on"),
        (
            "custom",
            {"question": None, "messages": []},
            "file of conversations; read it with data_utils.py convert messages",
        ),
        ("custom", {"question": None, "conversations": []}, "read it with data_utils.py convert llava"),
        ("messages", {"messages": [{"role": "assistant", "content": "x"}]}, "not in the layout of conversations"),
        ("messages", {"objects": {}, "messages": said("Where?", "<bbox>")}, "read it with convert messages-boxes"),
        ("messages-boxes", {"messages": said("Where?", "<bbox><bbox>")}, "2 <bbox> for 1 boxes"),
        ("messages-boxes", {"messages": said("<bbox>?", "a cat")}, "in its question none can be used"),
    ],
)
def test_what_a_record_gets_wrong_is_said(
    name: str, change: dict[str, Any], reason: str, tmp_path: Path, run: Any
) -> None:
    sample = SAMPLES[name]
    first, *rest = sample.content
    changed = Sample(sample.file, [{**first, **change}, *rest], [], sample.pictures, sample.options)
    output = tmp_path / "o.parquet"
    result = run("convert", name, "--output", output, *changed.write(tmp_path))
    one_sentence(result, reason, f"{Path(sample.file).name}, record 0")
    assert not output.exists()


@pytest.mark.parametrize("size", [(804, 4), (3, 900)])
def test_a_picture_that_processors_refuse_is_named_at_convert_as_at_verify(
    size: tuple[int, int], tmp_path: Path, run: Any
) -> None:
    Image.new("RGB", size).save(tmp_path / "strip.png")
    (tmp_path / "x.jsonl").write_text(json.dumps({"image": "strip.png", "question": "q", "answer": "a"}))
    convert = ["convert", "custom", "--input", tmp_path / "x.jsonl", "--output", tmp_path / "o.parquet"]
    said = f"strip.png is {size[0]} x {size[1]}, its aspect ratio is above 200, which processors refuse; crop it"
    one_sentence(run(*convert), said, "x.jsonl, record 0")


@pytest.mark.parametrize("lines", [1, 80])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_vlmevalkits_tsv_with_pictures_in_base64(prefix: str, lines: int, tmp_path: Path, run: Any) -> None:
    """A picture is a cell far longer than Python's csv reads by itself; base64 may be broken into lines."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    content = base64.b64encode(png_bytes(Image.fromarray(noise))).decode()
    assert len(content) > 200_000
    step = -(-len(content) // lines)
    cell = prefix + "\n".join(content[place : place + step] for place in range(0, len(content), step))
    with open(tmp_path / "set.tsv", "w", newline="") as file:
        writer = csv.writer(file, dialect="excel-tab")
        writer.writerow(["index", "image", "question", "A", "B", "C", "answer", "category"])
        writer.writerow([0, cell, "Which?", "cat", "dog", "", "B", "animals"])
        writer.writerow([1, cell, "Which?", "cat", "dog", "bird", "C", "animals"])
    assert run("convert", "custom", "--input", tmp_path / "set.tsv", "--output", tmp_path / "o.parquet")[0] == 0
    rows = read_rows(tmp_path / "o.parquet")
    assert [(row["choices"], row["answers"]) for row in rows] == [
        (["cat", "dog"], ["B"]),
        (["cat", "dog", "bird"], ["C"]),
    ]
    assert rows[0]["image_paths"] == rows[1]["image_paths"], "the same picture is one file"
    assert open_image(rows[0]["image_paths"][0]).tobytes() == noise.tobytes()
    assert rows[0]["meta"]["category"] == "animals"


@pytest.mark.parametrize(
    ("given", "choices"),
    [
        ({"A": "cat", "B": "dog"}, ["cat", "dog"]),
        ('{"B": "dog", "A": "cat"}', ["cat", "dog"]),
        ({"A": "cat", "B": "dog", "C": None}, ["cat", "dog"]),
        (["{a}", "{b}"], ["{a}", "{b}"]),
        ("{", "{"),
    ],
)
def test_choices_by_letter(given: Any, choices: Any) -> None:
    assert choices_of(given) == choices


def test_fields_by_name_for_anything_else(tmp_path: Path, run: Any) -> None:
    records = [{"bild": shot(), "frage": "was?", "antwort": 1, "wahl": ["a", "b"]}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "x.parquet")
    names = {"image": "bild", "question": "frage", "answer": "antwort", "choices": "wahl"}
    fields = [part for name, column in names.items() for part in (f"--{name}-field", column)]
    arguments = ["convert", "custom", "--input", tmp_path / "x.parquet", "--output", tmp_path / "o.parquet", *fields]
    assert run(*arguments, "--answer-as", "index")[0] == 0
    (row,) = read_rows(tmp_path / "o.parquet")
    assert (row["question"], row["answers"], row["choices"], row["meta"]) == ("was?", ["B"], ["a", "b"], {})
    one_sentence(run(*arguments, "--answer-field", "wort"), "record 0 has no wort; its fields are bild, frage")


def test_a_test_split_has_no_answers(tmp_path: Path, run: Any) -> None:
    sample = SAMPLES["textvqa"]
    record = {**sample.content["data"][0], "answers": [""] * 10}
    arguments = Sample(sample.file, {"data": [record]}, [], sample.pictures).write(tmp_path)
    one_sentence(run("convert", "textvqa", "--output", tmp_path / "o.parquet", *arguments), "are not texts")
    assert run("convert", "textvqa", "--output", tmp_path / "o.parquet", *arguments, "--allow-unanswered")[0] == 0
    assert read_rows(tmp_path / "o.parquet")[0]["answers"] == []


def test_vqav2_comes_as_the_hubs_parquet_too(tmp_path: Path, run: Any) -> None:
    answers = [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(["net"] * 10)]
    record = {"question_id": 262148000, "image": shot(), "image_id": 262148, "question": "What?", "answers": answers}
    arguments = Sample("data/validation-00000-of-00001.parquet", [{**record, "answer_type": "other"}], []).write(
        tmp_path
    )
    assert run("convert", "vqav2", "--output", tmp_path / "o.parquet", *arguments)[0] == 0
    (row,) = read_rows(tmp_path / "o.parquet")
    assert (row["answers"], row["metric"], row["meta"]["question_id"]) == (["net"] * 10, "vqa", 262148000)


def test_ok_vqa_comes_as_vqav2s_files_too(tmp_path: Path, run: Any) -> None:
    paths = write_vqav2(tmp_path)
    options = [part for name, path in paths.items() for part in (f"--{name.replace('_', '-')}", path)]
    assert run("convert", "ok-vqa", *options, "--output", tmp_path / "o.parquet")[0] == 0
    rows = read_rows(tmp_path / "o.parquet")
    assert {(row["source"], row["metric"]) for row in rows} == {("ok-vqa", "vqa")}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["vqa_rad", "--input", "x"], ["no set is called 'vqa_rad'; did you mean vqa-rad?"]),
        (["nonsense", "--input", "x"], ["choose one of vqav2,"]),
        (["slake"], ["SLAKE is read from --input", "download_data.sh slake"]),
        (["vqav2"], ["--questions (and --annotations) or --input"]),
        (["slake", "--questions", "x"], ["--questions is for vqav2 and ok-vqa"]),
        (["slake", "--input", "nowhere.json"], ["nowhere.json is not there"]),
        (["slake", "--input", "."], ["holds no file of SLAKE"]),
    ],
)
def test_a_wrong_command_says_the_right_one(
    arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    one_sentence(run("convert", *arguments, "--output", "o.parquet"), *parts)


def test_screenspot_in_a_folder_with_another_parquet(tmp_path: Path, run: Any) -> None:
    """It spoke of the other file, which nobody named."""
    pq.write_table(pa.table({"other": [1]}), tmp_path / "a.parquet")
    result = run("convert-screenspot", "--input", tmp_path, "--output", tmp_path / "o.parquet")
    one_sentence(result, "holds no file of ScreenSpot (a.parquet has no column bbox); name the file with --input")
    SAMPLES["screenspot-v2"].write(tmp_path)
    assert run("convert-screenspot", "--input", tmp_path, "--output", tmp_path / "o.parquet")[0] == 0
    assert [row["question"] for row in read_rows(tmp_path / "o.parquet")] == ["close"]


def test_splits_of_a_folder_are_not_mixed(tmp_path: Path, run: Any) -> None:
    for split in ("train", "test"):
        record = {"image": shot(), "question": f"{split}?", "answer": "no"}
        pq.write_table(pa.Table.from_pylist([record]), tmp_path / f"{split}-00000-of-00001-eb88.parquet")
    arguments = ["convert", "vqa-rad", "--input", tmp_path, "--output", tmp_path / "out" / "o.parquet"]
    one_sentence(run(*arguments), "holds the splits test, train; choose one with --split")
    one_sentence(run(*arguments, "--split", "val"), "has no split val; it has test, train")
    assert run(*arguments, "--split", "train")[0] == 0
    assert [row["question"] for row in read_rows(tmp_path / "out" / "o.parquet")] == ["train?"]


def test_ms_cxr_csv(tmp_path: Path, run: Any) -> None:
    picture((200, 100), 1).save(tmp_path / "a.png")
    (tmp_path / "x.csv").write_text(
        "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height\n"
        "d1,Edema,bilateral edema,a.png,20,10,40,30,200,100\n"
    )
    assert run("convert", "ms-cxr", "--input", tmp_path / "x.csv", "--output", tmp_path / "o.parquet")[0] == 0
    (row,) = read_rows(tmp_path / "o.parquet")
    assert (row["question"], row["boxes"]) == ("bilateral edema", [pytest.approx([0.1, 0.1, 0.3, 0.4])])


def test_the_metrics_are_known_and_the_table_in_the_docs_is_current() -> None:
    assert {item.metric for item in SETS.values()} <= {*METRICS, ""}
    docs = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    assert sets_table() in docs, "run python data_utils.py sets --markdown and put the table into docs/data.md"


@pytest.mark.parametrize("name", [name for name, item in SETS.items() if item.about.get.startswith("download_data.sh")])
def test_the_download_script_knows_them(name: str) -> None:
    assert SETS[name].about.get == f"download_data.sh {name}"
    script = (Path(__file__).parents[1] / "download_data.sh").read_text()
    assert f"\n        {name})" in script


def test_a_gold_answer_that_its_metric_does_not_take_is_bad(tmp_path: Path, run: Any) -> None:
    """A text that the reply's parser reads as reasoning scores 0 by any metric."""
    rows = [
        {"image": shot(), "question": "q", "answer": answer, "metric": metric}
        for answer, metric in (("<think>5", "math"), ("5", "math"), ("<think>", "anls"), ("a lung", "medical"))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    code, out, _ = run("verify", "--file", tmp_path / "x.parquet")
    bad = [line.split()[1] for line in out.splitlines() if "its gold answer" in line]
    assert (code, bad) == (1, ["0", "2"]), out


def test_many_answers_are_disputed_by_the_vqa_accuracy_only(tmp_path: Path, run: Any) -> None:
    """Ten ways to write one answer are alternatives for ANLS, and ten opinions for VQA."""
    for metric, disputed in (("anls", False), ("vqa", True)):
        row = {"image": shot(), "question": "q", "answers": [f"page {n}" for n in range(10)], "metric": metric}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
        code, out, _ = run("verify", "--file", tmp_path / "x.parquet")
        assert (code, "questions are disputed" in out) == (0, disputed), out


@pytest.mark.parametrize("several", [False, True])
def test_embedded_pictures_are_read_directly(several: bool, tmp_path: Path) -> None:
    """A file of the hub as it is, as --data-path: pictures as bytes, one or a list."""
    value = {"images": [shot(), shot(1)]} if several else {"image": shot()}
    pq.write_table(pa.Table.from_pylist([{**value, "question": "q", "answer": "x"}] * 2), tmp_path / "x.parquet")
    rows = read_rows(tmp_path / "x.parquet")
    assert [len(row["image_paths"]) for row in rows] == [1 + several] * 2
    assert all(Path(path).read_bytes() for row in rows for path in row["image_paths"])
    assert len(list((tmp_path / "images").iterdir())) == 1 + several


def placed(name: str, command: list[str]) -> None:
    """Write the set's sample to where a command of the table looks for it, named as its download names it."""
    if name == "vqav2":
        paths = write_vqav2(Path("data/vqav2"))
        paths["image_dir"].rename(Path("data/vqav2/images").absolute() / paths["image_dir"].name)
        return
    given = dict(pairwise(command))
    sample, source, content = SAMPLES[name], Path(given["--input"]), SAMPLES[name].content
    if isinstance(content, dict) and "data" in content:  # the authors' JSON; the hub has parquet with pictures
        content = [{**record, "image": shot()} for record in content["data"]]
    if source.suffix:
        file = source.relative_to(source.parent)
    elif "--split" in given and name != "slake":
        script = (Path(__file__).parents[1] / "download_data.sh").read_text()
        found = re.search(rf"\n +{re.escape(name)}\) hf \S+ \S+ '(.+)/\.\*", script)
        assert found, "a split needs a folder of the hub's parquet files"
        file = Path(found.group(1)) / f"{given['--split']}-00000-of-00001-abc.parquet"
    else:
        file = Path(sample.file)
    folder = source.parent if source.suffix else source
    Sample(str(file), content, [], beside=sample.beside).write(folder)
    pictures = Path(given.get("--image-dir", folder))
    Sample("unused.json", [], [], sample.pictures, size=sample.size).write(pictures)
    (pictures / "unused.json").unlink()


def test_every_command_of_the_table_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    docs = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    commands = re.findall(r"^\| `([^`]+)` .*? \| `data_utils\.py (convert [^`]+)` \|", docs, re.MULTILINE)
    assert [name for name, _ in commands] == list(SETS)
    monkeypatch.chdir(tmp_path)
    for name, command in commands:
        words = shlex.split(command)
        Path("data/vqav2/images").mkdir(parents=True, exist_ok=True)
        placed(name, words)
        code, _, error = run(*words)
        assert code == 0, f"{command}: {error}"
        rows = read_rows(words[-1])
        assert rows and all(row["source"] == name for row in rows)


def test_screenspot_pros_styles_languages_and_negative_targets(tmp_path: Path, run: Any) -> None:
    item = {**SAMPLES["screenspot-pro"].content[0], "action": "click the eraser"}
    items = [item, {**item, "id": "none", "gt_type": "negative", "bbox": None}]
    arguments = Sample("annotations/blender.json", items, [], ("images/blender/a.png",)).write(tmp_path)
    for options, question, kind in (
        ([], "erase", ("instruction", "en")),
        (["--language", "cn"], "擦", ("instruction", "cn")),
        (["--question-field", "action"], "click the eraser", ("action", "en")),
    ):
        assert run("convert", "screenspot-pro", *arguments, *options, "--output", tmp_path / "o.parquet")[0] == 0
        positive, negative = read_rows(tmp_path / "o.parquet")
        assert (positive["question"], positive["boxes"]) == (question, [pytest.approx(box) for box in BOX])
        assert (negative["boxes"], negative["labels"], negative["meta"]["gt_type"]) == ([], [], "negative")
        assert (positive["meta"]["instruction_style"], positive["meta"]["language"]) == kind
    one_sentence(
        run("convert", "screenspot-pro", *arguments, "--question-field", "poem", "--output", tmp_path / "x.parquet"),
        "item 0 has no poem",
    )


NAMES_OF_PICTURES = ("img_name", "imageId", "image_id", "image_local_name", "img_filename", "image_path", "image")


@pytest.mark.parametrize(
    "name",
    # The radiology sets are tables and COCO files, ScreenSpot-v2 is published as JSON only.
    sorted(set(data_samples.SAMPLES) - {"vindr-cxr", "ms-cxr", "screenspot-v2"}),
)
def test_every_set_comes_as_parquet_with_embedded_pictures_too(name: str, tmp_path: Path, run: Any) -> None:
    """As the hub has them: other than in the authors' files, the picture is in a column `image`."""
    content = SAMPLES[name].content
    if isinstance(content, dict):
        content = content.get("data") or [{"question_id": key, **item} for key, item in content.items()]
    if name == "vlm-r1":
        content = [{"image": "a.jpg", "problem": "the left man", "solution": "<answer>[20, 10, 60, 40]</answer>"}]
    if name == "visual-genome" or any(isinstance(content[0].get(field), str) for field in NAMES_OF_PICTURES):
        content = [{k: v for k, v in one.items() if k not in NAMES_OF_PICTURES} | {"image": shot()} for one in content]
    if name.startswith("messages"):  # the columns of a content in parts are in the test below
        texts = [one for one in content if all(isinstance(turn["content"], str) for turn in one["messages"])]
        content = [one | {"images": [shot()]} for one in texts]
    # Columns have one type: a list of elements, polygons and refusals are in the other tests.
    content = [one for one in content if "elements" not in one and one.get("box_type", "bbox") == "bbox"]
    file = SAMPLES[name].file.rsplit(".", 1)[0] + ".parquet"
    arguments = Sample(file, content, [], (), SAMPLES[name].options).write(tmp_path / "set")
    output = tmp_path / "out" / "x.parquet"
    code, _, error = run("convert", name, "--output", output, *arguments)
    assert code == 0, error
    rows = read_rows(output)
    for row, expected in zip(rows, SAMPLES[name].expected, strict=False):
        assert row["question"] == expected.get("question", row["question"])
        assert row["boxes"] == [pytest.approx(box) for box in expected.get("boxes", [])]
        assert all(Path(path).parent == output.parent / "images" for path in row["image_paths"])
    assert rows


def test_trls_parts_in_parquet_are_read(tmp_path: Path, run: Any) -> None:
    """There a part has all fields of all parts, empty ones included."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "Who?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "Ann."}]}]
    pq.write_table(pa.Table.from_pylist([{"images": [shot()], "messages": turns}]), tmp_path / "x.parquet")
    output = tmp_path / "o.parquet"
    assert run("convert", "messages", "--input", tmp_path / "x.parquet", "--output", output)[0] == 0
    assert [(row["question"], row["answers"]) for row in read_rows(output)] == [("Who?", ["Ann."])]
