"""One rank of an update, without Ray: `python -m tests.rank_update FOLDER` takes its share of FOLDER/job.json: a forward and
backward pass for each sample, or one for all of them ("together"), in which several ranks compute shared prompts once. It writes
the gradients of the weights that the job names to FOLDER/RANK.json. Used by test_e2e_ranks.py."""

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
from verl.workers.utils.padding import no_padding_2_padding

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
    engine.shares_prompts = ranks > 1
    own = [dict(builder.row(Sample(**one))) for one in job["samples"][rank::ranks]]  # type: ignore[arg-type]
    for rows in [own] if job.get("together") else [[row] for row in own]:
        data = list_of_dict_to_tensordict(rows)
        for name in list(data.keys()):
            if isinstance(data[name], torch.Tensor) and not data[name].is_nested:
                data[name] = torch.nested.as_nested_tensor(list(data[name]), layout=torch.jagged)
        tu.maybe_fix_3d_position_ids(data)
        tu.assign_non_tensor(data, calculate_entropy=False, use_remove_padding=False, temperature=1.0)
        loss, _ = engine.forward_step(data, total, forward_only=False)
        loss.backward()
        assert (engine._kept is not None) == (ranks > 1 and job.get("together", False)), (
            "prompts are shared where asked"
        )
    named = {name: weight.grad for name, weight in engine.module.named_parameters() if name in job["weights"]}
    whole = {name: getattr(grad, "full_tensor", lambda grad=grad: grad)() for name, grad in named.items()}
    (folder / f"{rank}.json").write_text(json.dumps({name: grad.flatten().tolist() for name, grad in whole.items()}))


def total(model_output: dict[str, torch.Tensor], data: Any, **_: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """The sum of the log-probabilities of the samples' replies."""
    return no_padding_2_padding(model_output["log_probs"], data).sum(), {}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
