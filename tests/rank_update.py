"""One rank of an update, without Ray: `python -m tests.rank_update FOLDER` takes its share of FOLDER/job.json, one forward and
backward pass, and writes the gradients of the weights that the job names to FOLDER/RANK.json. Used by test_e2e_ranks.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from verl.utils import tensordict_utils as tu
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from benchmarks.parity_ranks import actor
from vision_rl.config.resolve import resolve
from vision_rl.models.pixels import Pixels
from vision_rl.models.processor import load_processor
from vision_rl.training.rows import RowBuilder
from vision_rl.training.samples import Sample


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    engine = actor(OmegaConf.create(resolve("cpu", [], task="vqa", model=job["model"]).verl)).engine
    processor = load_processor(job["model"])
    engine.pixels = Pixels(processor, folder)
    builder = RowBuilder(processor, engine.pixels, max_prompt_length=4096, max_response_length=64)
    engine.module.train()
    for sample in [Sample(**one) for one in job["samples"]][rank::ranks]:
        data = list_of_dict_to_tensordict([dict(builder.row(sample))])  # type: ignore[arg-type]
        for name in list(data.keys()):
            if isinstance(data[name], torch.Tensor) and not data[name].is_nested:
                data[name] = torch.nested.as_nested_tensor(list(data[name]), layout=torch.jagged)
        tu.maybe_fix_3d_position_ids(data)
        tu.assign_non_tensor(data, calculate_entropy=False, use_remove_padding=False, temperature=1.0)
        loss, _ = engine.forward_step(data, total, forward_only=False)
        loss.backward()
    named = {name: weight.grad for name, weight in engine.module.named_parameters() if name in job["weights"]}
    whole = {name: getattr(grad, "full_tensor", lambda grad=grad: grad)() for name, grad in named.items()}
    (folder / f"{rank}.json").write_text(json.dumps({name: grad.flatten().tolist() for name, grad in whole.items()}))


def total(model_output: dict[str, torch.Tensor], **_: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """The sum of a sample's log-probabilities."""
    return model_output["log_probs"].values().sum(), {}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
