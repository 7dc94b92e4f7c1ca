"""`python -m tests.dummy_buffers MODEL[@LEFT_OUT] ...`: what a weight sync does not restore in a model with `load_format: dummy`.

vLLM fills every weight and persistent buffer of such a model with random values. After a sync of the checkpoint's weights it is
held against the model that vLLM loads from the checkpoint itself; the last line is the names of what differs, as JSON, a list for
each model. LEFT_OUT: a weight that the sync leaves out. That model also has a persistent buffer that no checkpoint holds,
`PLANTED`, as vLLM 0.28 and later have with `visual.input_norm`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

PLANTED = "planted"


def loaded(model: str, load_format: str) -> SimpleNamespace:
    """A worker's model and its configuration, under the names of vLLM's runner."""
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model

    from vision_rl.models.table import model_info

    options = model_info(model).family.cpu_options
    settings = EngineArgs(model=model, load_format=load_format, enforce_eager=True, max_model_len=512, **options)
    config = settings.create_engine_config()
    with set_current_vllm_config(config):
        meet()
        return SimpleNamespace(model=get_model(vllm_config=config), model_config=config.model_config)


def meet() -> None:
    """vLLM's layers ask for its process groups, of one process here; a mixture of experts has one more of them."""
    from vllm.distributed import destroy_model_parallel, init_distributed_environment, initialize_model_parallel

    if not torch.distributed.is_initialized():
        meeting = Path(tempfile.mkdtemp()) / "meeting"
        init_distributed_environment(1, 0, f"file://{meeting}", 0, "gloo")
    destroy_model_parallel()
    initialize_model_parallel(1, 1)


@contextmanager
def planted(wanted: bool) -> Iterator[None]:
    """Give every model that is loaded inside the block a buffer that it saves and no checkpoint holds."""
    from vllm.model_executor.model_loader import base_loader

    initialize = base_loader.initialize_model

    def with_buffer(*args: Any, **kwargs: Any) -> torch.nn.Module:
        made = initialize(*args, **kwargs)
        made.register_buffer(PLANTED, torch.ones(3))
        return made

    base_loader.initialize_model = with_buffer if wanted else initialize
    yield
    base_loader.initialize_model = initialize


def unequal(model: torch.nn.Module, right: torch.nn.Module) -> list[str]:
    """The names of tensors that differ; of a weight that a kernel of the CPU keeps for itself, what it makes of ones counts."""
    found = []
    for name, expected in tensors(right).items():
        mine = tensors(model).get(name)
        if mine is None or not torch.equal(mine, expected):
            found.append(name)
    for (name, layer), expected in zip(model.named_modules(), right.modules(), strict=True):
        if hasattr(layer, "cpu_linear") and not torch.equal(applied(layer), applied(expected)):
            found.append(f"{name}.weight")
    return sorted(set(found))


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights and buffers, saved or not."""
    return {**dict(model.named_buffers()), **model.state_dict()}


def applied(layer: Any) -> torch.Tensor:
    """A linear layer without its bias, of a fixed input."""
    width = layer.input_size if hasattr(layer, "input_size") else layer.embedding_dim
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(8, width, generator=generator).to(layer.weight.dtype)
    return layer.cpu_linear(given, layer.weight, None)


def not_restored(model: str, left_out: str) -> list[str]:
    """Load, sync, compare."""
    from safetensors.torch import load_file

    from vision_rl.serving.vllm_reload import reload_on_cpu

    with planted(bool(left_out)):
        server, right = loaded(model, "dummy"), loaded(model, "auto")
    weights = load_file(Path(model) / "model.safetensors")
    if left_out:
        del weights[left_out]
    assert unequal(server.model, right.model), "the random values are there"
    reload_on_cpu(server, weights.items())
    return unequal(server.model, right.model)


if __name__ == "__main__":
    from vision_rl.serving.vllm_executor import mend_cpu_build, register_models

    register_models()
    mend_cpu_build()
    print(json.dumps([not_restored(*asked.partition("@")[::2]) for asked in sys.argv[1:]]))
