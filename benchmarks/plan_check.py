"""Compare `--plan`'s memory estimate with what verl's actor takes, for a randomly initialised Qwen2.5-VL.

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
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from omegaconf import OmegaConf

from vision_rl.config.resolve import Resolved, resolve
from vision_rl.models.sizes import qwen2_5
from vision_rl.platform.environment import run_environment
from vision_rl.preflight.memory_plan import GB, plan

# hidden, layers, heads, key-value heads, inner, vocabulary; vision inner; prompt and response length; side of the picture
SIZES: dict[str, dict[str, Any]] = {
    "small": {"text": (256, 8, 4, 2, 1024, 16384), "vision": 512, "lengths": (512, 256), "side": 448},
    "medium": {"text": (512, 12, 8, 2, 2048, 32768), "vision": 1024, "lengths": (768, 256), "side": 448},
}
PATCH, MERGE = 14, 2
# The allocator gives memory back at once: else its own leftovers double the figure.
RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def model_folder(folder: Path, text: tuple[int, int, int, int, int, int], vision_inner: int) -> Path:
    """A folder with the config of such a model; the vision tower is 16 layers of 640."""
    config = qwen2_5(*text, True, vision_inner)
    config["text_config"]["rope_scaling"] = {"type": "mrope", "mrope_section": [8, 12, 12]}
    special = {
        f"{kind}_token_id": 10 + number for number, kind in enumerate(("image", "video", "vision_start", "vision_end"))
    }
    config |= special
    config["vision_config"] |= {"depth": 16, "hidden_size": 640, "num_heads": 8, "fullatt_block_indexes": [7, 15]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def batch_of(size: dict[str, Any], samples: int, config: Any) -> Any:
    """Full-length samples with one picture each, as the queue hands them to a rank: nested tensors without padding."""
    from verl import DataProto
    from verl.utils import tensordict_utils
    from verl.workers.utils.padding import left_right_2_no_padding

    (prompt, response), side = size["lengths"], size["side"]
    length, patches = prompt + response, (side // PATCH) ** 2
    images = patches // MERGE**2
    ids = torch.randint(100, 1000, (samples, length))
    ids[:, 8 : 8 + images] = config.image_token_id
    tensors = {
        "input_ids": ids,
        "attention_mask": torch.ones(samples, length, dtype=torch.long),
        "position_ids": torch.arange(length).expand(samples, 4, -1).contiguous(),
        "prompts": ids[:, :prompt].contiguous(),
        "responses": ids[:, prompt:].contiguous(),
        "response_mask": torch.ones(samples, response),
        "old_log_probs": torch.zeros(samples, response),
        "advantages": torch.ones(samples, response),
    }
    refs = np.array([{"refs": [str(sample)]} for sample in range(samples)])  # of different pictures: none is shared
    batch = DataProto.from_dict(tensors, {"multi_modal_inputs": refs}, meta_info={"temperature": 1.0})
    nested = left_right_2_no_padding(batch.to_tensordict())
    update = {"global_batch_size": samples, "mini_batch_size": samples, "epochs": 1, "seed": 1}
    tensordict_utils.assign_non_tensor(
        nested, **update, calculate_entropy=False, compute_loss=True, dataloader_kwargs={"shuffle": False}
    )
    return nested


class SquarePictures:
    """What the engine asks for the pixels of pictures; all are `side` pixels square."""

    def __init__(self, side: int) -> None:
        self.grid = torch.tensor([[1, side // PATCH, side // PATCH]])

    def draw(self) -> None:
        """No picture is masked here."""

    def inputs(self, refs: Sequence[str], view: str = "seen") -> dict[str, torch.Tensor]:
        patches = len(refs) * int(self.grid.prod())
        return {
            "pixel_values": torch.randn(patches, 3 * 2 * PATCH**2),
            "image_grid_thw": self.grid.expand(len(refs), -1),
        }


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
        "actor_rollout_ref.rollout.n=2",
        f"data.train_batch_size={micro}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={micro}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.model.enable_gradient_checkpointing=true",
        f"agent.max_pixels={size['side'] ** 2}",
    ]
    return resolve("cpu", overrides, task="vqa", model=folder)


def check(size: dict[str, Any], micro: int) -> tuple[float, float]:
    """(estimated, measured) GB of one update beyond weights and optimizer."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from verl.trainer.config import CheckpointConfig
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import HFModelConfig, TrainingWorkerConfig
    from verl.workers.utils.losses import ppo_loss

    from vision_rl.actor.rank import VisionTrainingWorker

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as name:
        folder = model_folder(Path(name), size["text"], size["vision"])
        resolved = settings(folder, size, micro)
        parts = plan(resolved).update
        config = AutoConfig.from_pretrained(folder)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
        tree = OmegaConf.create(resolved.verl["actor_rollout_ref"])
        tree.model.load_tokenizer = False  # the folder has weights only
        actor = omega_conf_to_dataclass(tree.actor)
        engine = actor.engine
        engine.use_dynamic_bsz, engine.micro_batch_size_per_gpu = False, micro
        engine.infer_micro_batch_size_per_gpu, engine.use_remove_padding = micro, False
        worker = VisionTrainingWorker(
            config=TrainingWorkerConfig(
                model_type="language_model",
                model_config=omega_conf_to_dataclass(tree.model, dataclass_type=HFModelConfig),
                engine_config=engine,
                optimizer_config=actor.optim,
                checkpoint_config=CheckpointConfig(),
            )
        )
        worker.reset()
    worker.engine.pixels = SquarePictures(size["side"])
    worker.set_loss_fn(partial(ppo_loss, config=actor))
    estimated = sum(parts[name] for name in ("gradients", "activations", "vision activations", "logits"))
    worker.train_mini_batch(batch_of(size, 2 * micro, config))  # so that the optimizer's state is there before
    batch = batch_of(size, 2 * micro, config)  # verl takes the settings of the update out of a batch
    worker.engine.optimizer_zero_grad()
    return estimated, peak_of(lambda: worker.train_mini_batch(batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--micro", type=int, default=2, help="samples of the micro-batch")
    args = parser.parse_args()
    needed = ALLOCATOR | run_environment(True) | RANK
    if any(os.environ.get(name) != value for name, value in needed.items()):  # read when the process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **needed})
    estimated, measured = check(SIZES[args.size], args.micro)
    print(f"{args.size}, micro-batch {args.micro}: estimated {estimated:.2f} GB, measured {measured:.2f} GB")


if __name__ == "__main__":
    main()
