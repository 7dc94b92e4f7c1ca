"""`python -m tests.sglang_server_run MODEL MEDIA_ROOT CACHE_MB` serves MODEL by this project's SGLang server.

Prints the server's address when it answers. The very class that verl starts, in a process of its own: it changes SGLang.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from vision_rl.engine.environment import run_environment

MAX_PIXELS = 10_000


async def serve(model: str, media_root: str, cache_mb: int) -> None:
    from omegaconf import OmegaConf
    from verl.workers.rollout.replica import RolloutMode

    from vision_rl.engine import sglang_cpu
    from vision_rl.engine.config import resolve
    from vision_rl.engine.schema import SGLANG_KWARGS
    from vision_rl.engine.sglang_server import VisionSGLangServer

    sglang_cpu.apply()
    flags = {"actor_rollout_ref.rollout.name": "sglang", "actor_rollout_ref.model.path": model}
    overrides = ["agent.image_transport=file", f"agent.max_pixels={MAX_PIXELS}"]
    resolved = resolve("cpu", overrides, task="vqa", model=model, flags=flags, media_root=Path(media_root))
    tree = OmegaConf.create(resolved.verl).actor_rollout_ref
    assert OmegaConf.select(tree, SGLANG_KWARGS.partition(".")[2]).mm_embedding_cache_mb == 0
    tree.rollout.engine_kwargs.sglang.mm_embedding_cache_mb = cache_mb
    tree.rollout.load_format = "auto"
    server = VisionSGLangServer.__ray_metadata__.modified_class(
        config=tree.rollout,
        model_config=tree.model,
        rollout_mode=RolloutMode.STANDALONE,
        workers=[],
        replica_rank=0,
        node_rank=0,
        nnodes=1,
        cuda_visible_devices="",
    )
    await server.launch_server()
    host, port = server.get_server_address()
    print(f"http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    os.environ.update(run_environment(cpu=True))
    asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
