"""`python -m vision_rl.engine.sglang_serve CONFIG.json` serves a model as a run with SGLang would, without verl's workers.

CONFIG.json holds the `actor_rollout_ref` of a resolved configuration. The address is printed once the server answers.
The very class that verl starts, in a process of its own, because it changes SGLang: for --doctor and for tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any


async def serve(actor_rollout: dict[str, Any]) -> None:
    """Until the process is ended."""
    from omegaconf import OmegaConf
    from verl.workers.rollout.replica import RolloutMode

    from vision_rl.engine import sglang_cpu
    from vision_rl.engine.sglang_server import VisionSGLangServer

    sglang_cpu.apply()
    tree = OmegaConf.create(actor_rollout)
    server = VisionSGLangServer.__ray_metadata__.modified_class(
        config=tree.rollout,
        model_config=tree.model,
        rollout_mode=RolloutMode.STANDALONE,  # weights from the model's folder, no worker brings others
        workers=[],
        replica_rank=0,
        node_rank=0,
        nnodes=1,
        cuda_visible_devices=_visible_devices(),
    )
    await server.launch_server()
    host, port = server.get_server_address()
    print(f"http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


def _visible_devices() -> str:
    import torch

    return os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
