"""Several pictures and video frames on the real stack: files of one's own, rows, messages, vLLM, pixels, positions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from scripts.tiny_models.families import build
from tests.data_samples import picture
from tests.test_e2e_training import ROOT, metrics_of, run
from vision_rl.agent.replay import picture_files
from vision_rl.data.schema import read_rows, write_rows
from vision_rl.media.references import is_video
from vision_rl.run.log import ROLLOUTS, read_jsonl

pytestmark = [pytest.mark.e2e, pytest.mark.long]

FRAMES = 3
CAP = 12_000
# Three steps over the same eight rows: every picture comes again after every update. The entropy term moves the weights,
# since a model that has never seen two pictures at once earns next to nothing.
STEPS = [
    *("--max-steps", "3", "trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=-1"),
    *("data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8", "data.max_prompt_length=192"),
    *("actor_rollout_ref.actor.entropy_coeff=0.01", f"app.images_per_prompt={FRAMES}"),
]


def clip(path: Path, seed: int) -> None:
    """A second of video whose brightness grows."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        for number in range(12):
            shade = np.asarray(picture((112, 84), seed), dtype=np.float64) * (number + 1) / 12
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four questions over two or three pictures of different shapes, three over videos, one over a folder of frames."""
    folder = tmp_path_factory.mktemp("media")
    records: list[dict[str, Any]] = []
    for number in range(4):
        sizes = [(84, 84), (112, 56), (56, 112)][: 2 + number % 2]
        names = [f"{number}-{place}.png" for place in range(len(sizes))]
        for place, (name, size) in enumerate(zip(names, sizes, strict=True)):
            picture(size, 10 * number + place).save(folder / name)
        records.append({"question": "Which picture is red?", "answer": "2", "images": names})
    for number in range(3):
        clip(folder / f"{number}.mp4", number)
        records.append({"question": "What color is it?", "answer": "red", "video": f"{number}.mp4"})
    records.append({"question": "What color is it?", "answer": "red", "frames": ["3-2.png", "3-0.png"]})
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, records)))
    command = [sys.executable, "data_utils.py", "convert-custom", "--input", str(folder / "own.jsonl")]
    command += ["--output", str(folder / "own.parquet"), "--frames", str(FRAMES)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "own.parquet"


def copy_of(data: Path) -> Path:
    """The same rows for validation: one file for both is refused."""
    return Path(shutil.copy(data, data.with_name(f"val-{data.name}")))


def even(data: Path) -> Path:
    """The same rows with frames of one size; native videos of several are refused."""
    *others, uneven = read_rows(data)
    uneven["image_paths"], uneven["image_sizes"] = others[-1]["image_paths"], others[-1]["image_sizes"]
    write_rows(data.with_name("even.parquet"), [*others, uneven])
    return data.with_name("even.parquet")


def test_native_videos_beside_pictures_train_and_agree(data: Path, tmp_path: Path) -> None:
    """A tiny Qwen3-VL, whose tower joins two frames; pictures and videos share micro-batches."""
    model = build("Qwen3-VL", tmp_path / "model")
    data = even(data)
    rows = {row["id"]: row for row in read_rows(data)}
    files = [
        "--data-path",
        str(data),
        "--val-data-path",
        str(copy_of(data)),
        "--model",
        str(model),
        "agent.video=native",
    ]
    summary = run(tmp_path / "run", "--task", "vqa", *files, *STEPS, "app.sight.val_rows=2", "app.sight.every=1")
    assert summary["rollouts_failed"] == 0
    steps = metrics_of(tmp_path / "run")
    assert len(steps) == 3 and all(line["actor/grad_norm"] > 0 for line in steps)
    assert max(line["mismatch/logprob_max"] for line in steps) <= 1e-4
    assert sum(line["train/samples"] for line in steps) == 3 * 8 * 8, "no sample was dropped"
    for rollout in read_jsonl(tmp_path / "run" / ROLLOUTS)[0]:
        row, [shown] = rows[rollout["id"]], rollout["image_refs"]
        assert [is_video(ref) for ref in shown] == ([True] if row["media"] == "video" else [False] * len(shown))
        assert len(picture_files(tmp_path / "run", shown)) == len(row["image_paths"])


@pytest.mark.parametrize("capped", [False, True])
def test_questions_over_pictures_and_videos_train_and_agree(capped: bool, data: Path, tmp_path: Path) -> None:
    rows = {row["id"]: row for row in read_rows(data)}
    assert [row["media"] for row in rows.values()] == ["images"] * 4 + ["video"] * 4
    files = ["--data-path", str(data), "--val-data-path", str(copy_of(data))]
    cap = [f"agent.max_total_pixels={CAP}"] if capped else []
    summary = run(tmp_path / "run", "--task", "vqa", *files, *STEPS, *cap)
    assert summary["rollouts_failed"] == 0
    steps = metrics_of(tmp_path / "run")
    assert len(steps) == 3 and all(line["actor/grad_norm"] > 0 for line in steps)
    assert max(line["mismatch/logprob_max"] for line in steps) <= 1e-4
    assert sum(line["train/samples"] for line in steps) == 3 * 8 * 8, "no sample was dropped"
    rollouts = read_jsonl(tmp_path / "run" / ROLLOUTS)[0]
    assert {rollout["id"] for rollout in rollouts} == set(rows)
    for rollout in rollouts:
        [shown] = rollout["image_refs"]
        files_of_row = rows[rollout["id"]]["image_paths"]
        if not capped:
            assert shown == [Path(path).as_uri() for path in files_of_row], "their own files, in order"
            continue
        kept = [
            Image.open(tmp_path / "run" / "pictures" / ref.removeprefix("sha256:")) for ref in shown if "sha" in ref
        ]
        assert len(shown) == len(files_of_row)
        if len(kept) == len(shown):  # else they fit as they are
            assert sum(image.width * image.height for image in kept) <= CAP
            means = [np.asarray(image.convert("RGB")).mean(axis=(0, 1)) for image in kept]
            originals = [np.asarray(Image.open(path).convert("RGB")).mean(axis=(0, 1)) for path in files_of_row]
            assert np.abs(np.array(means) - np.array(originals)).max() < 8, "in order"
    if capped:
        assert sum("sha256:" in ref for rollout in rollouts for ref in rollout["image_refs"][0]) > 100
