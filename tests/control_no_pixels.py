"""A control: the actor gets no pixels, as from Agent Lightning 0.3.0's own batch. Imported by `model.external_lib`."""

from typing import Any

from vision_rl.actor.engine import VisionEngine
from vision_rl.models.pixels import View


def nothing(_engine: VisionEngine, rows: list[list[str]], _view: View) -> list[dict[str, Any]]:
    """In place of the pictures of a micro-batch's rows."""
    return [{} for _ in rows]


VisionEngine._opened = nothing  # type: ignore[method-assign, assignment]
