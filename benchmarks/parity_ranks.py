"""One rank of the trainer, without Ray: `python -m benchmarks.parity_ranks FOLDER` answers FOLDER/jobs.json into RANK.json.

Torch's environment variables name the rank and where it meets the others. Worker, engine and configuration are a run's.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from vision_rl.actor.rank import VisionTrainingWorker
from vision_rl.config.resolve import resolve
from vision_rl.models.pixels import Pixels
from vision_rl.models.processor import load_processor
from vision_rl.training.rows import Drop, RowBuilder
from vision_rl.training.samples import Sample


def main(folder: Path) -> None:
    """Answer every job by the log-probabilities of this rank's share of its samples, or by what stopped it."""
    answers: list[list[list[float]] | str] = []
    for job in json.loads((folder / "jobs.json").read_text()):
        try:
            answers.append(answer(job, folder))
        except Exception as error:  # whatever stops the trainer is the mode's result
            traceback.print_exc()
            answers.append(f"{type(error).__name__}: {error}")
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(answers))


def answer(job: dict[str, Any], folder: Path) -> list[list[float]]:
    """This rank's share of a job; the last sample is computed again where they cannot be shared equally."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    worker = actor(OmegaConf.create(resolve("cpu", job["settings"], task="vqa", model=job["model"]).verl))
    processor = load_processor(job["model"])
    worker.engine.pixels = Pixels(processor, folder)
    builder = RowBuilder(processor, worker.engine.pixels, max_prompt_length=10**6, max_response_length=10**6)
    samples = [Sample(**sample) for sample in job["samples"]]
    share = -(-len(samples) // ranks)
    own = samples[rank * share : (rank + 1) * share]
    return log_probs(worker, builder, [*own, *samples[-1:] * (share - len(own))])[: len(own)]


def actor(tree: Any) -> VisionTrainingWorker:
    """The actor's worker of a configuration, as verl's `ActorRolloutRefWorker.init_model` builds it."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import TrainingWorkerConfig

    from vision_rl.actor.engine import VisionEngine

    VisionEngine.freezes_tower = bool(tree.actor_rollout_ref.actor.get("freeze_vision_tower", False))
    settings = omega_conf_to_dataclass(tree.actor_rollout_ref.actor)
    model = omega_conf_to_dataclass(tree.actor_rollout_ref.model)
    engine = settings.engine
    engine.use_dynamic_bsz = False
    engine.infer_micro_batch_size_per_gpu = engine.micro_batch_size_per_gpu = 64
    worker = VisionTrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=model,
            engine_config=engine,
            optimizer_config=settings.optim,
            checkpoint_config=settings.checkpoint,
        )
    )
    worker.reset()
    return worker


def log_probs(worker: VisionTrainingWorker, builder: RowBuilder, samples: list[Sample]) -> list[list[float]]:
    """Log-probabilities of each sample's response. Raises ValueError for a sample that the trainer would drop."""
    from verl.utils import tensordict_utils as tu
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    rows = [builder.row(sample) for sample in samples]
    for row in rows:
        if isinstance(row, Drop):
            raise ValueError(f"the trainer drops this sample: {row.text}")
    data = list_of_dict_to_tensordict([dict(row) for row in rows if isinstance(row, dict)])
    for name in list(data.keys()):
        if isinstance(data[name], torch.Tensor) and not data[name].is_nested:
            data[name] = torch.nested.as_nested_tensor(list(data[name]), layout=torch.jagged)
    tu.assign_non_tensor(data, calculate_entropy=False, compute_loss=False, temperature=1.0, global_token_num=None)
    output = worker.infer_batch(data)
    found = []
    for values, sample in zip(output["log_probs"].unbind(), samples, strict=True):
        start, count = len(sample.prompt_ids), len(sample.response_ids)
        found.append(values[start - 1 : start - 1 + count].tolist())
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
