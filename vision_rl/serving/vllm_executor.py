"""vLLM's engine and its one worker in one process, on CPUs.

vLLM takes a custom executor by its import path. It would give the worker a process of its own on a CPU, "as it is not
possible to set the OMP environment correctly" otherwise (platforms/cpu.py); a run sets that environment itself
(environment.py). Between the two processes vLLM waits by spinning for a second on either side
(distributed/device_communicators/shm_broadcast.py, `SpinCondition`), which on two cores takes the time of the others.
"""

from __future__ import annotations

import os
import secrets

from vllm.v1.executor.uniproc_executor import UniProcExecutor

from vision_rl.platform.rendezvous import RENDEZVOUS


class OneProcessExecutor(UniProcExecutor):
    """vLLM's executor for one worker, whose process group meets by a file (rendezvous.py)."""

    def _init_executor(self) -> None:
        contiguous_inputs()
        super()._init_executor()

    def _distributed_args(self) -> tuple[str, int, int]:
        address, rank, local_rank = super()._distributed_args()
        if folder := os.environ.get(RENDEZVOUS):
            address = f"file://{folder}/vllm-{secrets.token_hex(8)}"
        return address, rank, local_rank


def contiguous_inputs() -> None:
    """vLLM 0.24's CPU layers stop at Llama 4's patches ("Expected a.stride(-1) == 1", _custom_ops.py, `onednn_mm`): their
    kernel takes rows that lie together in memory, and the model hands it a transposed view."""
    from vllm import _custom_ops

    multiply = _custom_ops.onednn_mm
    _custom_ops.onednn_mm = lambda handler, rows, bias: multiply(handler, rows.contiguous(), bias)
