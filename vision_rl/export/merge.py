"""Run verl's checkpoint merger in the actor's precision: `python -m vision_rl.export.merge ACTOR_DIR TARGET DTYPE`.

verl 0.9.1 casts every tensor to bfloat16 (model_merger/fsdp_model_merger.py:169,181, base_model_merger.py:296), so that a
float32 run cannot be served as it was trained. Here the tensors keep what DTYPE says. It can go when verl's merger takes a
dtype; tests/test_export.py fails without it. A process of its own, because merging needs the whole model in memory once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from verl.model_merger.base_model_merger import ModelMergerConfig
from verl.model_merger.fsdp_model_merger import FSDPModelMerger

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Merger(FSDPModelMerger):
    """verl's FSDP merger without the cast."""

    def __init__(self, config: ModelMergerConfig, dtype: torch.dtype) -> None:
        super().__init__(config)
        self.dtype = dtype

    def _load_and_merge_state_dicts(
        self, world_size: int, total_shards: int, mesh_shape: tuple[int, ...], mesh_dim_names: tuple[str, ...]
    ) -> dict[str, torch.Tensor]:
        if len(mesh_shape) != 1:
            raise NotImplementedError("checkpoints of FSDP with tensor parallelism")
        shards = [self._shard(world_size, rank) for rank in range(total_shards)]
        merged = {}
        for name in sorted(shards[0]):
            parts = [shard.pop(name) for shard in shards]
            merged[name] = self._whole(parts, mesh_dim_names).to(self.dtype)
        return merged

    def _shard(self, world_size: int, rank: int) -> dict[str, Any]:
        path = Path(self.config.local_dir or "") / f"model_world_size_{world_size}_rank_{rank}.pt"
        # mmap keeps one copy in memory, not two.
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))

    def _whole(self, parts: list[torch.Tensor], mesh_dim_names: tuple[str, ...]) -> torch.Tensor:
        if not isinstance(parts[0], DTensor):
            return torch.cat(parts, dim=0)
        # Of a ("ddp", "fsdp") mesh the first ranks hold one whole replica.
        placements = parts[0].placements[1:] if mesh_dim_names[0] in ("dp", "ddp") else parts[0].placements
        return self._merge_by_placement([part._local_tensor for part in parts], placements[0])  # type: ignore[attr-defined]

    def save_hf_model_and_tokenizer(self, state_dict: dict[str, torch.Tensor]) -> None:
        super().save_hf_model_and_tokenizer(state_dict)
        path = Path(self.config.target_dir or "") / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        _set_dtype(config, str(self.dtype).removeprefix("torch."))
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """State the precision at every level of a model's config; loaders follow it."""
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    for part in config.values():
        if isinstance(part, dict) and ("dtype" in part or "torch_dtype" in part):
            _set_dtype(part, dtype)


def main(actor: str, target: str, dtype: str) -> None:
    """Merge the FSDP checkpoint in `actor` into the folder `target`."""
    Path(target).mkdir(parents=True, exist_ok=True)
    config = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=actor,
        target_dir=target,
        hf_model_config_path=str(Path(actor) / "huggingface"),
    )
    Merger(config, DTYPES[dtype]).merge_and_save()


if __name__ == "__main__":
    main(*sys.argv[1:])
