"""docs/radiology.md's four commands, on DICOM files and a table in RSNA's layout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dicom_files import radiograph, write_dicom
from vision_rl.data.schema import read_rows
from vision_rl.run.log import METRICS, read_jsonl

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: object) -> str:
    """A command of ours; its output."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.e2e
def test_from_dicom_to_an_evaluated_agent(tmp_path: Path) -> None:
    table = ["patientId,x,y,width,height,Target"]
    for number in range(40):
        tags = {"PhotometricInterpretation": "MONOCHROME1" if number % 2 else "MONOCHROME2"}
        write_dicom(tmp_path / "rsna" / "stage_2_train_images" / f"p{number}.dcm", radiograph(112, 112, number), **tags)
        table.append(f"p{number},20,30,25,40,1" if number % 4 else f"p{number},,,,,0")
    (tmp_path / "rsna" / "labels.csv").write_text("\n".join(table) + "\n")
    data = tmp_path / "data"
    run(
        *("data_utils.py", "convert", "rsna-pneumonia", "--input", tmp_path / "rsna" / "labels.csv"),
        *("--image-dir", tmp_path / "rsna" / "stage_2_train_images", "--empty", "share=0.2"),
        *("--output", data / "rsna.parquet"),
    )
    split = ("--group-by", "meta:patient", "--shares", "60/20/20")
    run("data_utils.py", "split", "--file", data / "rsna.parquet", "--output-dir", data, *split)
    splits = {name: read_rows(data / f"{name}.parquet") for name in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == 38 and any(not row["boxes"] for rows in splits.values() for row in rows)
    run(
        *("train_agent.py", "--task", "grounding", "--preset", "cpu", "--run-dir", tmp_path / "run", "--max-steps", 3),
        *("--data-path", data / "train.parquet", "--val-data-path", data / "validation.parquet"),
        "agent.answer_format=click",
    )
    steps = [line for line in read_jsonl(tmp_path / "run" / METRICS)[0] if "train/reward" in line]
    assert len(steps) == 3
    run(
        *("evaluate_agent.py", "--checkpoint", tmp_path / "run", "--data", data / "test.parquet"),
        *("--output", tmp_path / "evaluation"),
    )
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert summary["scored"] == len(splits["test"]) and summary["failed"] == 0
    assert "<click>" in summary["protocol"]["prompt"]
