"""Mixed training: several files in proportion, the same order every time, figures per source."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import train_agent
from vision_rl.data.mix import DataFile, data_file, mixed, per_source, sample_by_source
from vision_rl.data.schema import read_rows
from vision_rl.errors import UserError
from vision_rl.tiny import write_tasks
from vision_rl.training import prepare


@pytest.mark.parametrize(
    ("sets", "weights", "order"),
    [
        (["aaaa", "bb"], [2, 1], "abaaba"),
        (["aaaa", "bb"], [None, None], "abaaba"),
        (["aa", "bb"], [1, None], "abab"),
        (["aaaa", "b"], [1, 1], "abababab"),  # the short one comes again, its share is kept
        (["ab", ""], [1, 1], "ab"),
        (["", ""], [1, 1], ""),
        (["abc"], [7], "abc"),
        (["abc"], [0.3], "abc"),
    ],
)
def test_the_order(sets: list[str], weights: list[float | None], order: str) -> None:
    assert "".join(mixed(sets, weights)) == order


lengths = st.lists(st.integers(0, 12), min_size=1, max_size=4)
shares = st.none() | st.floats(0.25, 4)


@given(
    lengths.flatmap(lambda given: st.tuples(st.just(given), st.lists(shares, min_size=len(given), max_size=len(given))))
)
def test_every_item_comes_and_shares_are_kept_all_along(case: tuple[list[int], list[float | None]]) -> None:
    sets = [[(number, place) for place in range(length)] for number, length in enumerate(case[0])]
    found = mixed(sets, case[1])
    assert found == mixed(sets, case[1])
    assert set(found) == {item for items in sets for item in items}
    if all(weight is None for weight in case[1]):
        assert len(found) == sum(case[0])
        return
    weights = [(weight or 1.0) if length else 0.0 for weight, length in zip(case[1], case[0], strict=True)]
    for stop in range(1, len(found) + 1):
        counts = Counter(number for number, _ in found[:stop])
        for number, weight in enumerate(weights):
            assert abs(counts[number] - stop * weight / sum(weights)) <= len(sets)


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.parquet", "a.parquet", None),
        ("a.parquet:2", "a.parquet", 2.0),
        ("/d/a.parquet:0.5", "/d/a.parquet", 0.5),
        ("s3:x.parquet", "s3:x.parquet", None),
        (":2", ":2", None),
    ],
)
def test_weights_are_read(text: str, path: str, weight: float | None) -> None:
    assert data_file(text) == DataFile(Path(path), weight)


def test_a_file_with_a_colon_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:2").touch()
    assert data_file("a:2") == DataFile(Path("a:2"))


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf"])
def test_weights_that_mean_nothing(weight: str) -> None:
    with pytest.raises(UserError, match=rf"a\.parquet:{weight}: the weight {weight} is not above 0"):
        data_file(f"a.parquet:{weight}")


def test_validation_has_rows_of_every_source() -> None:
    rows = [{"source": "big", "id": number} for number in range(1000)] + [{"source": "small", "id": -1}]
    chosen = sample_by_source(rows, 10, 0)
    assert Counter(row["source"] for row in chosen) == {"big": 9, "small": 1}
    assert chosen == sample_by_source(rows, 10, 0) != sample_by_source(rows, 10, 1)
    half = [{"source": name, "id": number} for name in "ab" for number in range(50)]
    assert Counter(row["source"] for row in sample_by_source(half, 20, 3)) == {"a": 10, "b": 10}


def record(source: str, reward: float, failure: str = "", **components: float) -> dict[str, Any]:
    return {"source": source, "failure": failure, "reward": {} if failure else {"reward": reward, **components}}


def test_figures_per_source() -> None:
    records = [record("a", 1.0, accuracy=1.0), record("a", 0.0, "timeout"), record("b", 0.5, iou=0.5), record("b", 0.0)]
    assert per_source(records, "val") == {
        "val/a/rollouts": 2, "val/a/reward": 0.5, "val/a/accuracy": 1.0,
        "val/b/rollouts": 2, "val/b/reward": 0.25, "val/b/iou": 0.5,
    }  # fmt: skip
    assert per_source(records[:2], "val") == {} == per_source([], "val")


def arguments(*given: object) -> Any:
    return train_agent.parsed(["--preset", "cpu", *map(str, given)])


def test_training_mixes_files_in_a_fixed_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = (write_tasks(tmp_path / name, "vqa", train=60, val=4, test=2) for name in "ab")
    args = arguments("--data-path", f"{one['train']}:3", f"{two['train']}:1", "app.max_train_samples=40", "--val-data-path", one["val"], two["val"])  # fmt: skip  # noqa: E501
    assert args.overrides == ["app.max_train_samples=40"]
    resolved, rows, val_rows, _ = prepare.prepared(args, True)
    folders = ["a" if "/a/" in row["image_paths"][0] else "b" for row in rows]
    assert (folders.count("a"), folders.count("b")) == (30, 10)
    assert rows == prepare.prepared(args, True)[1]
    assert {"/a/" in row["image_paths"][0] for row in val_rows} == {True, False}
    assert resolved.verl["data"]["train_files"] == [f"{one['train']}:3", f"{two['train']}:1"]


def test_a_bad_picture_of_a_mix_names_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = (write_tasks(tmp_path / name, "vqa", train=60, val=4, test=2) for name in "ab")
    Path(read_rows(two["train"])[7]["image_paths"][0]).unlink()
    args = arguments("--data-path", one["train"], two["train"], "--val-data-path", one["val"], two["val"])
    with pytest.raises(UserError, match=r"/b/vqa/train\.parquet, row 7: "):
        prepare.prepared(args, True)
