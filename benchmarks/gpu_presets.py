"""Run a preset on this machine's GPU with random weights of real size: does it fit, and how long does a step take?

    python benchmarks/gpu_presets.py --preset gpu_40gb --size 3b [--steps 3] [--output FILE] [key=value ...]

Random weights answer nothing, but they cost what trained ones cost: memory, log-probabilities, update and weight sync are
those of a real run, and so is the mismatch between actor and rollout. Replies are as long as the configuration allows. Data
are the synthetic rows of the task, their pictures enlarged to `--pixels` a side. Results are appended to FILE (JSON lines).
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.initialization import no_init_weights

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.tiny_models.model import build_processor  # noqa: E402
from vision_rl.run.log import EVENTS, METRICS, read_jsonl  # noqa: E402
from vision_rl.tiny import checkpoint_dir, write_tasks  # noqa: E402

VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "num_heads": 16,
    "intermediate_size": 3420,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
# The published config.json of Qwen2.5-VL-3B and -7B: what differs from the tiny model's.
SIZES: dict[str, dict[str, Any]] = {
    "3b": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
           "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
}  # fmt: skip
MAX_PIXELS = 1003520
SHOWN = (
    "timing_s/",
    "mismatch/",
    "perf/",
    "response_length/mean",
    "prompt_length/mean",
    "actor/grad_norm",
    "actor/perf/",
)
DECIMALS = 4


@torch.no_grad()
def write_model(size: str, folder: Path) -> Path:
    """A Qwen2.5-VL of the published shape in bfloat16, with the tiny model's tokenizer filled up with words of no meaning."""
    config = Qwen2_5_VLConfig.from_pretrained(checkpoint_dir())
    shape = SIZES[size]
    config.text_config.update(
        {**shape, "max_window_layers": shape["num_hidden_layers"], "max_position_embeddings": 32768}
    )
    config.text_config.layer_types = ["full_attention"] * shape["num_hidden_layers"]
    config.text_config.rope_parameters["mrope_section"] = [16, 24, 24]
    config.tie_word_embeddings = shape["tie_word_embeddings"]
    config.vision_config.update({**VISION, "out_hidden_size": shape["hidden_size"]})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with no_init_weights(), torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.tie_weights()  # left out with the initialisation
    for name, weight in model.named_parameters():
        weight.fill_(1.0) if "norm" in name and name.endswith("weight") else weight.normal_(std=0.02)
    model.save_pretrained(folder)
    processor = build_processor()
    processor.image_processor.max_pixels = MAX_PIXELS
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": MAX_PIXELS}
    processor.save_pretrained(folder)
    # Into the BPE's own vocabulary: as added tokens, each copy that vLLM takes of the tokenizer would last minutes.
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    # The special tokens too: else they are numbered anew, at the end.
    vocabulary.update({each["content"]: each["id"] for each in tokenizer["added_tokens"]})
    vocabulary.update({f"<|{i}|>": i for i in range(len(processor.tokenizer), shape["vocab_size"])})
    file.write_text(json.dumps(tokenizer))
    return folder


def write_data(task: str, folder: Path, pixels: int, rows: int) -> tuple[Path, Path]:
    """Training and validation rows whose pictures are `pixels` a side."""
    files = write_tasks(folder, task, train=rows, val=16, test=1)
    for path in sorted(folder.rglob("*.png")):
        Image.open(path).resize((pixels, pixels)).save(path)
    return files["train"], files["val"]


def used_gib() -> float:
    """Memory in use on the fullest GPU, by the driver."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return (
            max(float(line) for line in subprocess.run(command, capture_output=True, text=True).stdout.split()) / 1024
        )
    except (OSError, ValueError):
        return 0.0


def run(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One training run, watched; its figures."""
    began = time.monotonic()
    model = str(checkpoint_dir()) if asked.size == "tiny" else str(write_model(asked.size, folder / asked.size))
    train, val = write_data(asked.task, folder / "data", asked.pixels, asked.rows)
    made, started = time.monotonic(), time.time()
    directory = folder / "run"
    command = [
        *(sys.executable, str(ROOT / "train_agent.py"), "--preset", asked.preset, "--task", asked.task, "--model", model),
        *("--data-path", str(train), "--val-data-path", str(val), "--max-steps", str(asked.steps), "--overwrite"),
        *("--run-dir", str(directory), "trainer.save_freq=-1", "trainer.test_freq=-1", "trainer.val_before_train=false"),
        *asked.overrides,
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, used_gib())
            time.sleep(0.5)
    print(*(folder / "log").read_text().splitlines()[-asked.tail :], sep="\n", flush=True)
    steps = [row for row in read_jsonl(directory / METRICS)[0] if "timing_s/step" in row]
    names = sorted({name for row in steps for name in row if name.startswith(SHOWN)})
    phases = [
        [round(event["time"] - started, 1), event["text"]]
        for event in read_jsonl(directory / EVENTS)[0]
        if event["kind"] == "phase"
    ]
    return {
        **{name: getattr(asked, name) for name in ("preset", "size", "task", "pixels", "steps", "overrides")},
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "exit": process.returncode,
        "model_seconds": round(made - began, 1),
        "seconds": round(time.monotonic() - made, 1),
        "peak_gpu_gib": round(peak, 2),
        "phases": phases,
        "first": {name: round(steps[0][name], DECIMALS) for name in names if name in steps[0]} if steps else {},
        "median": {
            name: round(statistics.median(row[name] for row in steps[1:] or steps if name in row), DECIMALS)
            for name in names
            if any(name in row for row in steps[1:] or steps)
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpu_40gb")
    parser.add_argument("--size", default="3b", choices=["tiny", *SIZES])
    parser.add_argument("--task", default="vqa")
    parser.add_argument("--pixels", type=int, default=448, help="side of the square pictures (default 448)")
    parser.add_argument("--rows", type=int, default=256, help="training rows (default 256)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tail", type=int, default=12, help="lines of the run's output to show (default 12)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(asked, Path(folder))
    line = json.dumps(found)
    print(line)
    if asked.output:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        with asked.output.open("a") as file:
            file.write(line + "\n")
    return int(found["exit"] != 0)


if __name__ == "__main__":
    sys.exit(main())
