"""Rollouts in TensorBoard and Weights & Biases, read back from the files that the two write."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.recorded_runs import HOSTILE, SIZE, told_run
from vision_rl.answers.parsing import read_boxes
from vision_rl.report.tables import ROWS, TAG, log_rollout_tables
from vision_rl.run.log import ROLLOUTS, read_jsonl


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return told_run(tmp_path_factory.mktemp("tables") / "run", steps=1, turns=1)


@pytest.fixture()
def records(run_dir: Path) -> list[dict[str, Any]]:
    return [record for record in read_jsonl(run_dir / ROLLOUTS)[0] if record["mode"] == "val"]


def test_tensorboard_shows_pictures_with_boxes_and_a_table(
    run_dir: Path, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    gone = {**records[0], "id": "z-gone", "image_paths": ["/nowhere.png"], "question": f"a | b {HOSTILE}"}
    writer = SummaryWriter(str(tmp_path))
    log_rollout_tables({"tensorboard": SimpleNamespace(writer=writer), "console": None}, [*records, gone], 10, run_dir)
    writer.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0}).Reload()
    assert events.Tags()["images"] == [f"{TAG}/{n:02d}" for n in range(len(records))]
    ordered = sorted(records, key=lambda record: record["id"])
    for number, record in enumerate(ordered):
        [image] = events.Images(f"{TAG}/{number:02d}")
        assert image.step == 10
        pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB")).astype(int)
        assert pixels.shape[:2] == SIZE[::-1]
        for colour, box in (
            ((10, 143, 60), record["boxes"][0]),
            ((214, 36, 110), read_boxes(record["replies"][0], "bbox").boxes[0]),
        ):
            xs = np.nonzero(np.abs(pixels - colour).sum(axis=2) == 0)[1]
            assert [xs.min(), xs.max()] == pytest.approx([box[0] * SIZE[0], box[2] * SIZE[0]], abs=2), colour
    [text] = events.Tensors(f"{TAG}/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    lines = table.split("\n")
    assert len(lines) == 2 + len(records) + 1 and {line.count("|") for line in lines} == {5}
    assert ordered[0]["question"] in lines[2] and "<script" not in table


@pytest.mark.slow
def test_wandb_holds_a_table_with_boxes(
    run_dir: Path, records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    run = wandb.init(project="test", dir=str(tmp_path))
    try:
        log_rollout_tables({"wandb": wandb}, records, 10, run_dir)
    finally:
        run.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    staged = [path.read_bytes() for path in (tmp_path / "staged" / "artifacts" / "staging").iterdir()]
    [table] = [json.loads(content) for content in staged if b'"_type": "table"' in content]
    assert table["columns"] == ["picture", "id", "question", "truth", "reply", "reward", "failure"]
    assert len(table["data"]) == len(records) <= sum(content.startswith(b"\x89PNG") for content in staged)
    first = min(records, key=lambda record: record["id"])
    picture, *cells = table["data"][0]
    assert cells[:2] == [first["id"], first["question"]] and cells[4] == pytest.approx(first["reward"]["reward"])
    assert picture["_type"] == "image-file" and set(picture["boxes"]) == {"truth", "predicted"}
    position = picture["boxes"]["truth"][0]["position"]
    assert [position[name] for name in ("minX", "minY", "maxX", "maxY")] == pytest.approx(first["boxes"][0])


def test_only_so_many_rows_and_only_trackers_that_show_pictures(run_dir: Path, records: list[dict[str, Any]]) -> None:
    shown: list[Any] = []
    fake = SimpleNamespace(
        Table=lambda columns: SimpleNamespace(add_data=lambda *cells: shown.append(cells)),
        Image=lambda picture, boxes: (picture, boxes),
        log=lambda values, step: None,
    )
    many = [{**records[0], "rollout_id": str(n)} for n in range(100)]
    log_rollout_tables({"wandb": fake}, many, 1, run_dir)
    assert len(shown) == ROWS
    log_rollout_tables({"console": object(), "file": object()}, many, 1, "/no/such/run")
