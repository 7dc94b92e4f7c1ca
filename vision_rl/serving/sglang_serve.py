"""Serve a model with SGLang as a run would, without verl: `python -m vision_rl.serving.sglang_serve CONFIG.json`.

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

LOOPBACK = "127.0.0.1"


async def serve(actor_rollout: dict[str, Any]) -> None:
    """Until the process is ended."""
    import torch
    from omegaconf import OmegaConf
    from verl.workers.rollout.replica import RolloutMode

    from vision_rl.serving.sglang_server import VisionSGLangServer

    devices = ",".join(map(str, range(torch.cuda.device_count())))
    tree = OmegaConf.create(actor_rollout)
    tree.rollout.load_format = "auto"  # a run's "dummy" waits for the actor's weights
    server = VisionSGLangServer(
        config=tree.rollout,
        model_config=tree.model,
        rollout_mode=RolloutMode.STANDALONE,  # weights from the model's folder, no worker brings others
        workers=[],
        replica_rank=0,
        node_rank=0,
        nnodes=1,
        cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES", devices),
        base_gpu_id=0,
    )
    server._server_address = LOOPBACK  # a run's is reached through the network, with the run's key
    await server.launch_server()
    _, port = server.get_server_address()
    print(f"http://{LOOPBACK}:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
