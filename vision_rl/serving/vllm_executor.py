"""vLLM's engine and its one worker in one process, on CPUs.

vLLM takes a custom executor by its import path. It would give the worker a process of its own on a CPU, "as it is not
possible to set the OMP environment correctly" otherwise (platforms/cpu.py); a run sets that environment itself
(environment.py). Between the two processes vLLM waits by spinning for a second on either side
(distributed/device_communicators/shm_broadcast.py, `SpinCondition`), which on two cores takes the time of the others.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

from vllm.v1.executor.uniproc_executor import UniProcExecutor

from vision_rl.platform.rendezvous import RENDEZVOUS
from vision_rl.serving.vllm_two_way import see_both_ways


class OneProcessExecutor(UniProcExecutor):
    """vLLM's executor for one worker, whose process group meets by a file (rendezvous.py)."""

    def _init_executor(self) -> None:
        mend_cpu_build()
        super()._init_executor()

    def _distributed_args(self) -> tuple[str, int, int]:
        address, rank, local_rank = super()._distributed_args()
        if folder := os.environ.get(RENDEZVOUS):
            address = f"file://{folder}/vllm-{secrets.token_hex(8)}"
        return address, rank, local_rank


def register_models() -> None:
    """Name the classes of ours in vLLM's registry; none is imported before its model is served.

    A plug-in of vLLM, for the processes that it spawns (pyproject.toml, `vllm.general_plugins`).
    """
    from vllm import ModelRegistry

    janus = "JanusForConditionalGeneration"
    ModelRegistry.register_model(janus, f"vision_rl.serving.vllm_janus:{janus}")


def mend_cpu_build() -> None:
    """What vLLM 0.24's CPU build needs before its engine is made, in the engine's process."""
    contiguous_inputs()
    clear_pages()
    see_both_ways()
    gate_without_config()


def clear_pages() -> None:
    """Let vLLM 0.24's CPU runner clear the pages that it hands out, as its GPU runner does.

    In a hybrid model (Qwen3.5) attention and the states of linear attention share pages. What a state leaves there may read
    as NaN in the attention's dtype, and a probability of zero times NaN is NaN, at the first token of a sequence's second
    block: a rollout in six failed. vLLM leaves the pages as they are ("stale KV cache data never affects computation",
    v1/worker/cpu_model_runner.py, `_zero_block_ids`); 0.31 clears them.
    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    def zero_block_ids(self: Any, block_ids: list[int]) -> None:
        layers = self.compilation_config.static_forward_context
        for group in self.kv_cache_config.kv_cache_groups:
            if isinstance(group.kv_cache_spec, FullAttentionSpec):
                for name in group.layer_names:  # (blocks, heads, tokens of a block, keys and values)
                    layers[name].kv_cache[block_ids] = 0

    CPUModelRunner._zero_block_ids = zero_block_ids


def gate_without_config() -> None:
    """On a CPU without AVX-512 vLLM 0.24 computes experts in torch and makes its SiLU gate anew at each forward, where there is
    no configuration any more: "Current vLLM config is not set" (layers/fused_moe/cpu_fused_moe.py, `_CPU_MOE_ACT_FN`)."""
    from torch.nn.functional import silu
    from vllm.model_executor.layers.fused_moe import cpu_fused_moe as experts

    def gate(both: Any) -> Any:
        left, right = both.chunk(2, dim=-1)
        return silu(left) * right

    experts._CPU_MOE_ACT_FN[experts.MoEActivation.SILU] = gate


def contiguous_inputs() -> None:
    """vLLM 0.24's CPU layers stop at Llama 4's patches ("Expected a.stride(-1) == 1", _custom_ops.py, `onednn_mm`): their
    kernel takes rows that lie together in memory, and the model hands it a transposed view."""
    from vllm import _custom_ops

    multiply = _custom_ops.onednn_mm
    _custom_ops.onednn_mm = lambda handler, rows, bias: multiply(handler, rows.contiguous(), bias)
