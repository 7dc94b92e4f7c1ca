from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_rl.agent.prompts import vqa_text
from vision_rl.data.row import SCHEMA, normalise_row
from vision_rl.data.schema import read_rows, stored_path, write_row_sets, write_rows
from vision_rl.data.verify import Checks, verify
from vision_rl.errors import UserError
from vision_rl.tasks import get_task

ROOT = Path(__file__).parent.parent
VQA: dict[str, Any] = {"id": "1", "image_paths": ["a.png"], "question": "what?", "answers": ["cat"]}
GROUNDING: dict[str, Any] = {
    "id": "2",
    "image_paths": ["a.png"],
    "question": "the button",
    "boxes": [[0.1, 0.2, 0.3, 0.4]],
}


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    rows = [
        {**VQA, "meta": {"question_id": 7, "text": "ü"}, "image_sizes": [[10, 20]]},
        {**GROUNDING, "labels": ["x"], "source": "screenspot"},
        {"id": "3", "task": "grounding", "image_paths": ["b.png"], "question": "nothing", "boxes": []},
    ]
    assert write_rows(tmp_path / "x.parquet", rows) == 3
    back = read_rows(tmp_path / "x.parquet")
    assert [row["task"] for row in back] == ["vqa", "grounding", "grounding"]
    assert back[0]["meta"] == {"question_id": 7, "text": "ü"}
    assert back[0]["image_sizes"] == [[10, 20]]
    assert back[0]["image_paths"] == [str(tmp_path / "a.png")]
    assert back[1]["boxes"] == [[0.1, 0.2, 0.3, 0.4]]
    assert back[1]["labels"] == ["x"]
    assert back[2]["boxes"] == []


def test_the_guides_custom_file_is_read(tmp_path: Path) -> None:
    record = {"id": "custom_001", "image_path": "/pictures/1.jpg", "question": "What is this?", "answer": "a cat"}
    pd.DataFrame([record]).to_parquet(tmp_path / "custom.parquet")
    (row,) = read_rows(tmp_path / "custom.parquet")
    assert (row["task"], row["image_paths"], row["answers"]) == ("vqa", ["/pictures/1.jpg"], ["a cat"])
    assert set(row) == set(SCHEMA.names)


def test_pandas_and_datasets_read_the_file(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write_rows(tmp_path / "x.parquet", [VQA, GROUNDING])
    assert list(pd.read_parquet(tmp_path / "x.parquet").columns) == SCHEMA.names
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "x.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded[1]["boxes"] == [[0.1, 0.2, 0.3, 0.4]]


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [
        ({"image_path": "a", "question": "q", "answer": "x"}, "answers", ["x"]),
        ({"image_path": "a", "question": "q", "answer": 3}, "answers", ["3"]),
        ({"image_path": "a", "instruction": "q", "bbox": [0, 0, 1, 1]}, "boxes", [[0.0, 0.0, 1.0, 1.0]]),
        ({"image_path": "a", "instruction": "q", "bbox": [0, 0, 1, 1]}, "question", "q"),
        (
            {"image_path": "a", "question": "q", "ground_truth": [{"x": 0.1, "y": 0.2, "width": 0.5, "height": 0.5}]},
            "boxes",
            [[0.1, 0.2, 0.6, 0.7]],
        ),
        ({"image_path": "a", "question": "q", "boxes": [[0, 0, 1 + 1e-9, 1]]}, "boxes", [[0.0, 0.0, 1.0, 1.0]]),
        ({"image_path": "a", "question": "q", "boxes": [[0, 0, 1, 1]]}, "labels", [""]),
        ({"image_path": "a", "question": "q", "answer": "x", "ward": "B"}, "meta", {"ward": "B"}),
        ({"image_path": "a", "question": "q", "answer": "x", "meta": '{"k": 1}'}, "meta", {"k": 1}),
        ({"image_paths": ["a", "b"], "question": "q", "answer": "x", "media": "video"}, "media", "video"),
        ({"image_path": "a", "question": "q", "choices": ["x", "y"], "answer": "A"}, "answers", ["A"]),
        ({"image_path": "a", "question": "q", "choices": ["x", "y"], "answer": "(b)"}, "answers", ["B"]),
        ({"image_path": "a", "question": "q", "options": ["x", "y"], "answer": "y"}, "answers", ["B"]),
        ({"image_path": "a", "question": "q", "choices": ["B", "A"], "answer": "A"}, "answers", ["A"]),
        ({"image_path": "a", "question": "q", "choices": ["x", "y"], "answer": "A"}, "metric", "multiple_choice"),
        ({"image_path": "a", "question": "q", "choices": ["x", "y"], "metric": "anls"}, "metric", "anls"),
        ({"image_path": "a", "question": "q", "answer": "x"}, "metric", ""),
    ],
)
def test_accepted(record: dict[str, Any], field: str, value: Any) -> None:
    assert normalise_row(record)[field] == value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_paths": []}, "names no image"),
        ({"image_paths": [""]}, "names no image"),
        ({"question": "  "}, "question"),
        ({"question": None}, "question"),
        ({"task": "ocr"}, "task 'ocr' is unknown"),
        ({"media": "audio"}, "media is 'audio'"),
        ({"task": "groundin"}, "did you mean grounding"),
        ({"metric": "anl"}, "metric is 'anl'; did you mean 'anls'"),
        ({"choices": ["a", "b"]}, "grounding row has choices"),
        ({"choices": ["a"]}, "expected 2 to 26 texts"),
        ({"choices": ["a", " "]}, "expected 2 to 26 texts"),
        ({"choices": ["x", "y"], "answers": ["C"]}, "neither a letter from A to B"),
        ({"choices": ["x", "x"], "answers": ["x"]}, "nor the text of one choice"),
        ({"boxes": [[0, 0, 5, 5]]}, "outside 0..1"),
        ({"boxes": [[0.5, 0.5, 0.1, 0.9]]}, "corners swapped"),
        ({"boxes": [[0, 0, float("nan"), 1]]}, "not finite"),
        ({"boxes": [[0, 0, 1]]}, "four numbers"),
        ({"boxes": "all"}, "expected a list"),
        ({"labels": ["a", "b"]}, "labels for"),
        ({"answers": ["x"]}, "grounding row has answers"),
        ({"task": "vqa"}, "vqa row has boxes"),
        ({"image_sizes": [[10, 10], [10, 10]]}, "image_sizes for"),
        ({"image_sizes": [[0, 10]]}, "width, height"),
        ({"meta": "{"}, "meta is not JSON"),
        ({"meta": "[1]"}, "JSON object"),
    ],
)
def test_rejected_with_the_reason(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        normalise_row({**GROUNDING, **change})
    with pytest.raises(UserError, match="row 1"):
        write_rows(tmp_path / "x.parquet", [GROUNDING, {**GROUNDING, **change}])
    assert list(tmp_path.iterdir()) == []


def test_choices_are_in_the_prompt() -> None:
    """A row with choices and the answer "A" could not be answered: the choices vanished into meta."""
    row = normalise_row({"image_path": "a", "question": "Which {one}?", "choices": ["cat", "dog"], "answer": "A"})
    assert (row["choices"], row["meta"]) == (["cat", "dog"], {})
    lines = vqa_text(row["question"], row["choices"]).splitlines()
    assert lines[:3] == ["Which {one}?", "A. cat", "B. dog"] and "letter" in lines[3]
    assert vqa_text("Which?") == "Which?\nAnswer the question using a single word or phrase."


def test_a_bad_row_is_named_when_read(tmp_path: Path) -> None:
    pd.DataFrame([VQA, {**VQA, "question": ""}]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet, row 1: its question"):
        read_rows(tmp_path / "x.parquet")
    assert len(read_rows(tmp_path / "x.parquet", limit=1)) == 1


def test_task_limit_and_base_dir(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.parquet", [VQA, GROUNDING, {**VQA, "id": "3"}])
    assert [row["id"] for row in read_rows(tmp_path / "x.parquet", task="vqa")] == ["1", "3"]
    assert [row["id"] for row in read_rows(tmp_path / "x.parquet", task="vqa", limit=1)] == ["1"]
    assert read_rows(tmp_path / "x.parquet", image_base_dir="/pictures")[0]["image_paths"] == ["/pictures/a.png"]
    write_rows(tmp_path / "y.parquet", [VQA])
    with pytest.raises(UserError, match="holds rows of task vqa, none of 'grounding'"):
        read_rows(tmp_path / "y.parquet", task="grounding")


@pytest.mark.parametrize("content", [None, b"", b"PAR1 not really", b'{"id": 1}'])
def test_unreadable_files_are_user_errors(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.parquet"):
        read_rows(path)


def test_a_folder_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "one" / "splits").mkdir(parents=True)
    image = str(tmp_path / "one" / "images" / "a.png")
    write_rows(tmp_path / "one" / "splits" / "x.parquet", [{**VQA, "image_paths": [image]}])
    os.rename(tmp_path / "one", tmp_path / "two")
    (row,) = read_rows(tmp_path / "two" / "splits" / "x.parquet")
    assert row["image_paths"] == [str(tmp_path / "two" / "images" / "a.png")]


def test_stored_path() -> None:
    assert stored_path("/d/images/a.png", "/d") == "images/a.png"
    assert stored_path("/d/images/a.png", "/d/splits") == "../images/a.png"
    assert stored_path("/other/a.png", "/d") == "/other/a.png"
    assert stored_path("rel/a.png", "/d") == "rel/a.png"


def test_a_failing_set_replaces_no_file(tmp_path: Path) -> None:
    paths = [tmp_path / "train.parquet", tmp_path / "test.parquet"]
    write_row_sets({path: [VQA] for path in paths})
    before = [path.read_bytes() for path in paths]
    with pytest.raises(UserError):
        write_row_sets({paths[0]: [GROUNDING], paths[1]: [{**VQA, "question": ""}]})
    assert [path.read_bytes() for path in paths] == before
    assert sorted(tmp_path.iterdir()) == sorted(paths)


WRITER = """
import sys, time
from vision_rl.data.schema import write_rows
def rows():
    for number in range(10**9):
        if number == 5000:
            print("half", flush=True)
            time.sleep(60)
        yield {"id": str(number), "image_paths": ["a.png"], "question": "q", "answers": ["x"]}
write_rows(sys.argv[1], rows())
"""


def test_a_killed_writer_leaves_no_half_file(tmp_path: Path) -> None:
    target = tmp_path / "x.parquet"
    write_rows(target, [VQA])
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    assert len(list(tmp_path.glob(".x.parquet.*.tmp"))) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [row["id"] for row in read_rows(target)] == ["1"]
    write_rows(target, [GROUNDING])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.parquet"]


def test_a_living_writer_keeps_its_file(tmp_path: Path) -> None:
    target = tmp_path / "x.parquet"

    def rows() -> Any:
        yield VQA
        write_rows(target, [GROUNDING])
        yield {**VQA, "id": "9"}

    write_rows(target, rows())
    assert [row["id"] for row in read_rows(target)] == ["1", "9"]


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
unit_boxes = st.tuples(*[st.floats(0, 1)] * 4).map(
    lambda n: [min(n[0], n[2]), min(n[1], n[3]), max(n[0], n[2]), max(n[1], n[3])]
)


@given(text, st.lists(text, max_size=10), st.lists(unit_boxes, max_size=4), st.booleans())
def test_round_trip(question: str, answers: list[str], boxes: list[list[float]], grounding: bool) -> None:
    record: dict[str, Any] = {"id": "1", "image_paths": ["a.png"], "question": question}
    record |= {"boxes": boxes} if grounding else {"answers": answers}
    row = normalise_row(record)
    assert normalise_row({**row, "meta": json.dumps(row["meta"])}) == row
    assert row["boxes"] == (boxes if grounding else [])


def own_rows(path: Path, task: str | None, **fields: object) -> Path:
    column = {} if task is None else {"task": task}
    rows = [{"image_path": "a.png", "question": "q", **fields, **column} for _ in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_rows_of_another_task_are_read_as_the_one_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `convert custom`, `split` and `sample` write says vqa; a task of one's own with the same kind of truth takes it."""
    get_task(str(ROOT / "examples" / "chart_qa.py"))
    path = own_rows(tmp_path / "own.parquet", "vqa", answer="a")
    for _ in range(2):
        assert [row["task"] for row in read_rows(path, task="chart_qa")] == ["chart_qa"] * 2
    assert capsys.readouterr().err == f"note: the rows of {path} are of task vqa; they are read as chart_qa\n"
    reasons = [problem.reason for problem in verify(path, checks=Checks(task="chart_qa", open_images=False)).problems]
    assert reasons == ["it repeats row 0 (same picture, question and answer)"], "nothing about the task"
    assert [row["task"] for row in read_rows(path)] == ["vqa"] * 2
    assert [row["task"] for row in read_rows(own_rows(path, None, answer="a"), task="chart_qa")] == ["chart_qa"] * 2


@pytest.mark.parametrize(
    ("there", "fields", "wanted", "words"),
    [
        (
            "grounding",
            {"bbox": [0.0, 0.0, 1.0, 1.0]},
            "vqa",
            "holds rows of task grounding, none of 'vqa', whose rows have ans",
        ),
        (
            "vqa",
            {"answer": "a"},
            "grounding",
            "holds rows of task vqa, none of 'grounding', whose rows have boxes; train on",
        ),
        ("somebodys", {"answer": "a"}, "vqa", "row 0: task 'somebodys' is unknown"),
    ],
)
def test_rows_whose_truth_is_another_are_not(
    tmp_path: Path, there: str, fields: dict[str, object], wanted: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        read_rows(own_rows(tmp_path / "own.parquet", there, **fields), task=wanted)


def test_a_file_of_two_tasks_keeps_them(tmp_path: Path) -> None:
    get_task(str(ROOT / "examples" / "chart_qa.py"))
    rows = [{"image_path": "a.png", "question": "q", "answer": "a", "task": task} for task in ("vqa", "chart_qa")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "own.parquet")
    assert len(read_rows(tmp_path / "own.parquet", task="chart_qa")) == 1


def test_a_picture_in_a_text_is_said_to_be_one(tmp_path: Path) -> None:
    path = own_rows(tmp_path / "own.parquet", "vqa", answer="a", image_path="data:image/png;base64,aGVsbG8=")
    with pytest.raises(UserError, match=r"its picture is embedded as a text; data_utils\.py convert custom writes"):
        read_rows(path)
