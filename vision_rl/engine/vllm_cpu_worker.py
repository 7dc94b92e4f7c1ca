"""vLLM's CPU worker for any rank of a run: several FSDP ranks, each with a server of its own, on one machine without GPUs."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker


class AnyRankWorker(CPUWorker):
    """verl 0.6.1 gives a worker its rank in the whole run (vllm_rollout_spmd.py:585). vLLM's CUDA worker takes it; the CPU's
    looks its cores up by it, among those of its own server only (cpu_worker.py:60), and finds none from the second on."""

    def init_device(self) -> None:
        parallel = self.vllm_config.parallel_config
        server, parallel.data_parallel_rank_local = parallel.data_parallel_rank_local, None
        super().init_device()
        parallel.data_parallel_rank_local = server
