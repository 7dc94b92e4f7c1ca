"""What unmodified SGLang 0.5.5 and verl's side of it need on a machine without an accelerator.

SGLang has a CPU backend, but its kernels come as CUDA wheels only; `packaging/sgl-kernel-stub` stands in for them, and every
layer then takes its PyTorch form. `apply` is installed in every Ray worker instead of `verl_cpu.apply`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing as mp
import os
import signal
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

from vision_rl.engine import verl_cpu
from vision_rl.orphans import end_with_parent


def apply() -> None:
    """`verl_cpu.apply`, and weights that travel to the server by value; a no-op with CUDA."""
    import torch
    from torch.multiprocessing import reductions

    verl_cpu.apply()
    if torch.cuda.is_available():
        return
    # SGLang's patch of these (utils/patch_torch.py) asks every tensor for its GPU; where this name is, it leaves them alone.
    reductions._reduce_tensor_original = reductions.reduce_tensor
    # PyTorch passes a CPU tensor as a handle that only a child of this process can open; the server is none.
    ForkingPickler.register(torch.Tensor, _by_value)


def _by_value(tensor: Any) -> Any:
    import torch

    buffer = io.BytesIO()
    torch.save(tensor.clone(), buffer)  # a view would bring its whole storage
    return torch.storage._load_from_bytes, (buffer.getvalue(),)


@contextlib.contextmanager
def no_gpu_needed() -> Iterator[None]:
    """verl's server asserts a GPU in its constructor, for which it has no use there."""
    import torch

    asked = torch.cuda.is_available
    torch.cuda.is_available = lambda: True
    try:
        yield
    finally:
        torch.cuda.is_available = asked


def fork_scheduler(_arguments: Any) -> None:
    """In place of verl's `_set_envs_and_config`, which spawns for CUDA's sake: a fork needs no second import of SGLang."""
    mp.set_start_method("fork", force=True)
    os.register_at_fork(after_in_child=functools.partial(end_with_parent, signal.SIGKILL))


def process_pictures_on_cpu(tokenizer_manager: Any) -> None:
    """SGLang runs fast image processors on "cuda" unless this flag is set; the processor itself is loaded by now."""
    tokenizer_manager.server_args.disable_fast_image_processor = True
