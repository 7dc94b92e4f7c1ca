"""Ranks on one machine find each other through files in a folder that only its user can read.

torch's TCPStore, the usual way, listens on every interface whatever address it is given, and asks nobody who they are.
In a cluster of several machines the variable is unset, and everything here does nothing.
"""

from __future__ import annotations

import os

RENDEZVOUS = "VISION_RL_RENDEZVOUS"
"""Names the folder."""


def workers_meet_by_file() -> None:
    """For verl's groups of Ray workers, which honour `DIST_INIT_METHOD` (utils/distributed.py:98).

    The file is one group's: each group of workers has its own MASTER_PORT.
    """
    if folder := os.environ.get(RENDEZVOUS):
        os.environ["DIST_INIT_METHOD"] = f"file://{folder}/{os.environ['MASTER_PORT']}"


def vllm_meets_by_file() -> None:
    """For the ranks of vLLM's forked engine.

    vLLM knows an address only (`get_distributed_init_method`, v1/executor/multiproc_executor.py:128). What follows the last
    colon becomes part of a shared memory's name.
    """
    from vllm.v1.executor import multiproc_executor

    if folder := os.environ.get(RENDEZVOUS):
        multiproc_executor.get_distributed_init_method = lambda _ip, port: f"file://{folder}/vllm:{port}"
