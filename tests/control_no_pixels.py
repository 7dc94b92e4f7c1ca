"""A control: the actor gets no pixels, as from Agent Lightning 0.3.0's own batch. Imported by `model.external_lib`."""

from typing import Any

from vision_rl.backends.engine import VisionEngine


def nothing(_engine: VisionEngine, _inputs: Any) -> dict[str, Any]:
    """In place of the pictures of a sample."""
    return {}


VisionEngine._opened = nothing  # type: ignore[method-assign, assignment]
