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

from vision_rl.backends.rendezvous import RENDEZVOUS


class OneProcessExecutor(UniProcExecutor):
    """vLLM's executor for one worker, whose process group meets by a file (rendezvous.py)."""

    def _distributed_args(self) -> tuple[str, int, int]:
        address, rank, local_rank = super()._distributed_args()
        if folder := os.environ.get(RENDEZVOUS):
            address = f"file://{folder}/vllm-{secrets.token_hex(8)}"
        return address, rank, local_rank
