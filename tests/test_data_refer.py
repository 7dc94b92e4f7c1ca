"""RefCOCO's own files: what converts, and a pickle that wants to do something."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import data_utils
from tests.data_samples import picture
from vision_rl.data.convert.refer import plain_pickle
from vision_rl.data.schema import read_rows
from vision_rl.errors import UserError

IMAGE = "COCO_train2014_000000000007.jpg"


def references() -> list[dict[str, Any]]:
    """Two references in refer's layout: of one picture, in two splits."""
    return [
        {
            "ref_id": number, "ann_id": 40 + number, "image_id": 7, "category_id": 1, "split": split,
            "file_name": f"COCO_train2014_000000000007_{number}.jpg", "sent_ids": [2 * number, 2 * number + 1],
            "sentences": [
                {"sent_id": 2 * number + place, "sent": text, "raw": text.title(), "tokens": text.split()}
                for place, text in enumerate((f"left man {number}", f"man in red {number}"))
            ],
        }
        for number, split in enumerate(("val", "testA"))
    ]  # fmt: skip


def as_python_2(value: Any) -> bytes:
    """The pickle that Python 2 wrote: texts are `str`, opcode S."""
    return re.sub(rb"V([^\n]*)\n", rb"S'\1'\n", pickle.dumps(value, protocol=0))


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """refer's data/refcoco, with COCO's pictures where refer.py looks for them."""
    images = tmp_path / "images" / "mscoco" / "images" / "train2014"
    images.mkdir(parents=True)
    picture((200, 100), 1).save(images / IMAGE)
    (tmp_path / "refs(unc).p").write_bytes(as_python_2(references()))
    instances = {
        "info": {}, "licenses": [],
        "images": [{"id": 7, "file_name": IMAGE, "width": 200, "height": 100}],
        "annotations": [
            {"id": 40 + n, "image_id": 7, "category_id": 1, "bbox": [20.0, 10.0, 40.0, 30.0], "segmentation": [[1, 2]]}
            for n in range(2)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    return tmp_path


def convert(source: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    output = str(source.parent / "o.parquet")
    monkeypatch.setattr(
        sys, "argv", ["data_utils.py", "convert", "refcoco", "--input", str(source), "--output", output, *arguments]
    )
    with pytest.raises(SystemExit) as exit_info:
        data_utils.main()
    return int(exit_info.value.code or 0)


def test_the_authors_files_convert_split_by_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert convert(folder / "refs(unc).p", "--image-dir", str(folder), "--split", "testA", monkeypatch=monkeypatch) == 0
    rows = read_rows(folder / "o.parquet")
    assert [row["question"] for row in rows] == ["left man 1", "man in red 1"]
    assert all(row["boxes"] == [pytest.approx([0.1, 0.1, 0.3, 0.4])] for row in rows)
    assert {row["metric"] for row in rows} == {"acc_at_iou_0.5"} and rows[0]["meta"]["split"] == "testA"


def test_a_folder_converts_too_and_two_divisions_are_not_mixed(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:  # fmt: skip  # noqa: E501
    assert convert(folder, "--split", "val", monkeypatch=monkeypatch) == 0
    assert convert(folder, monkeypatch=monkeypatch) == 2
    assert "refs(unc).p holds the splits testA, val; choose one with --split" in capsys.readouterr().err
    (folder / "refs(google).p").write_bytes(as_python_2(references()))
    assert convert(folder, "--split", "val", monkeypatch=monkeypatch) == 2
    assert "holds refs(google).p and refs(unc).p; name one with --input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ([{**references()[0], "image_id": 8}], "record 0 is no reference of"),
        ([{**references()[0], "sentences": [{}]}], "record 0 is no reference of"),
        ({"refs": 1}, "is not a list of references"),
        ([1], "is not a list of references"),
    ],
)
def test_what_is_no_reference(changed: Any, reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:  # fmt: skip  # noqa: E501
    (folder / "refs(unc).p").write_bytes(pickle.dumps(changed, protocol=2))
    assert convert(folder, "--split", "val", monkeypatch=monkeypatch) == 2
    assert reason in capsys.readouterr().err


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_does_nothing(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps([Touch(mark)], protocol=protocol))
    assert mark.exists(), "the pickle is a hostile one"
    mark.unlink()
    (tmp_path / "refs.p").write_bytes(pickle.dumps([{"ref_id": Touch(mark)}], protocol=protocol))
    with pytest.raises(UserError, match=r"it names .*system"):
        plain_pickle(tmp_path / "refs.p")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x80", b"garbage", b"(lp0\n", pickle.dumps(references())[:-20], b"(iposix\nsystem\np0\n.",
        b"c__builtin__\neval\n.", b"cbuiltins\ngetattr\n.", b"\x82\x01.", b"Pid\n.", b"]" * 10, b"(" * 5000 + b"t" * 5000,
        b"\x8e" + b"\xff" * 8, b"]q\x00h\x01.", b"}(]K\x01u.", b"K\x01R.", b"]}b.", b"I" + b"9" * 10000 + b"\n.",
    ],
)  # fmt: skip
def test_a_damaged_one_is_a_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(UserError, match="is not a pickle of plain values"):
        plain_pickle(tmp_path / "refs.p")
