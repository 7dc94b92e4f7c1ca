"""`--plan`'s estimate of the update against what verl's actor takes: a randomly initialised Qwen2.5-VL.

    python benchmarks/plan_check.py [--size small|medium] [--micro 2]

Measured is the peak of resident memory over an update of two micro-batches, above what weights and optimizer state hold
before it; estimated are gradients, activations and logits. Float32 on a CPU; in bfloat16 the formulas are the same with half
the width.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from omegaconf import OmegaConf

from vision_rl.engine.config import Resolved, resolve
from vision_rl.engine.plan import GB, plan
from vision_rl.engine.shapes import _qwen2_5

# hidden, layers, heads, key-value heads, inner, vocabulary; vision inner; prompt and response length; side of the picture
SIZES: dict[str, dict[str, Any]] = {
    "small": {"text": (256, 8, 4, 2, 1024, 16384), "vision": 512, "lengths": (512, 256), "side": 448},
    "medium": {"text": (512, 12, 8, 2, 2048, 32768), "vision": 1024, "lengths": (768, 256), "side": 448},
}
PATCH, MERGE = 14, 2
# The allocator gives memory back at once: else its own leftovers double the figure.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def model_folder(folder: Path, text: tuple[int, int, int, int, int, int], vision_inner: int) -> Path:
    """A folder with the config of such a model; the vision tower is 16 layers of 640."""
    config = _qwen2_5(*text, True, vision_inner)
    config["text_config"]["rope_scaling"] = {"type": "mrope", "mrope_section": [8, 12, 12]}
    special = {
        f"{kind}_token_id": 10 + number for number, kind in enumerate(("image", "video", "vision_start", "vision_end"))
    }
    config |= special
    config["vision_config"] |= {"depth": 16, "hidden_size": 640, "num_heads": 8, "fullatt_block_indexes": [7, 15]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def batch_of(size: dict[str, Any], samples: int, config: Any) -> Any:
    """Full-length samples with one picture each, as the actor gets them."""
    from verl import DataProto

    (prompt, response), side = size["lengths"], size["side"]
    length, patches = prompt + response, (side // PATCH) ** 2
    images = patches // MERGE**2
    ids = torch.randint(100, 1000, (samples, length))
    ids[:, 8 : 8 + images] = config.image_token_id
    tensors = {
        "input_ids": ids,
        "attention_mask": torch.ones(samples, length, dtype=torch.long),
        "position_ids": torch.arange(length).expand(samples, 4, -1).contiguous(),
        "responses": ids[:, prompt:].contiguous(),
        "response_mask": torch.ones(samples, response),
        "old_log_probs": torch.zeros(samples, response),
        "advantages": torch.ones(samples, response),
    }
    grid = torch.tensor([[1, side // PATCH, side // PATCH]])
    pixels = [{"pixel_values": torch.randn(patches, 3 * 2 * PATCH**2), "image_grid_thw": grid} for _ in range(samples)]
    batch = DataProto.from_dict(tensors, {"multi_modal_inputs": np.array(pixels, dtype=object)})
    batch.meta_info = {"temperature": 1.0}
    return batch


def peak_of(work: Any) -> float:
    """GB that `work()` takes at its peak above what is held before it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # begins the kernel's peak anew
    work()
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return (peak - before) / GB


def settings(folder: Path, size: dict[str, Any], micro: int) -> Resolved:
    overrides = [
        f"data.max_prompt_length={size['lengths'][0]}",
        f"data.max_response_length={size['lengths'][1]}",
        f"data.train_batch_size={2 * micro}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={2 * micro}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.model.enable_gradient_checkpointing=true",
        f"agent.max_pixels={size['side'] ** 2}",
    ]
    return resolve("cpu", overrides, task="vqa", model=folder)


def check(size: dict[str, Any], micro: int) -> tuple[float, float]:
    """(estimated, measured) GB of one update beyond weights and optimizer."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.actor import DataParallelPPOActor

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as name:
        folder = model_folder(Path(name), size["text"], size["vision"])
        resolved = settings(folder, size, micro)
        parts = plan(resolved).update
        config = AutoConfig.from_pretrained(folder)
    estimated = sum(parts[name] for name in ("gradients", "activations", "vision activations", "logits"))
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    tree = OmegaConf.create(resolved.verl["actor_rollout_ref"]["actor"])
    actor = DataParallelPPOActor(omega_conf_to_dataclass(tree), model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # so that its state is there before
    optimizer.zero_grad(set_to_none=True)
    batch = batch_of(size, 2 * micro, config)
    return estimated, peak_of(lambda: actor.update_policy(batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--micro", type=int, default=2, help="samples of the micro-batch")
    args = parser.parse_args()
    if any(name not in os.environ for name in ALLOCATOR):  # it reads them when the process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    estimated, measured = check(SIZES[args.size], args.micro)
    print(f"{args.size}, micro-batch {args.micro}: estimated {estimated:.2f} GB, measured {measured:.2f} GB")


if __name__ == "__main__":
    main()
