"""Measure what vLLM's server decodes when rollouts ask about the same pictures: with its own connector and with ours.

    python benchmarks/decoding.py [--pictures 16] [--rollouts 8] [--side 1024]

The requests of a group are joined where they are equal; these are those that are not: turns after a tool, rollouts with
seeds of their own. Each connector is asked as a request asks it, `--rollouts` times for each picture, all at once.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from vision_rl.serving import vllm_pictures

TIMES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--rollouts", type=int, default=8, help="of each picture")
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [draw(Path(folder) / f"{seed}.png", seed, args.side) for seed in range(args.pictures)]
        taken: dict[str, list[float]] = {"http": [], vllm_pictures.NAME: []}
        for _ in range(TIMES):
            for name, seconds in taken.items():
                vllm_pictures.KeptImages.load_bytes.cache.clear()
                seconds.append(ask(name, paths * args.rollouts))
    theirs, ours = (float(np.median(seconds)) for seconds in taken.values())
    print(f"CPU seconds, median of {TIMES}: vLLM's {theirs:.2f}, ours {ours:.2f}, {theirs / ours:.1f} times less")


def draw(path: Path, seed: int, side: int) -> Path:
    """A picture that compresses as screenshots do: flat fields under a little noise."""
    generator = np.random.default_rng(seed)
    fields = np.kron(generator.integers(0, 240, (side // 16, side // 16, 3)), np.ones((16, 16, 1), dtype=int))
    Image.fromarray((fields + generator.integers(0, 12, fields.shape)).astype(np.uint8)).save(path)
    return path


def ask(name: str, paths: list[Path]) -> float:
    async def all_of_them() -> None:
        connectors = [MEDIA_CONNECTOR_REGISTRY.load(name, allowed_local_media_path=str(path.parent)) for path in paths]
        await asyncio.gather(
            *(each.fetch_image_async(path.as_uri()) for each, path in zip(connectors, paths, strict=True))
        )

    begun = time.process_time()
    asyncio.run(all_of_them())
    return time.process_time() - begun


if __name__ == "__main__":
    main()
