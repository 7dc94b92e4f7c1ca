"""A control: the model server keeps its caches over weight updates. Imported by `model.external_lib` in every process."""

from vision_rl.serving.vllm_server import VisionHttpServer


async def nothing(_server: VisionHttpServer) -> None:
    """In place of verl's reset of prefix, processor and encoder caches."""


VisionHttpServer.clear_kv_cache = nothing  # type: ignore[method-assign, assignment]
