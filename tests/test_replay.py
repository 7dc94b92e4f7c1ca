"""What a record tells of its pictures must be what the conversation itself knew."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.test_conversation import WAIT, ZOOM, Model, pictures_of, run  # noqa: F401  (run: a fixture)
from vision_rl.agent.replay import answer_boxes, views_of
from vision_rl.agent.replay import pictures_of as record_pictures
from vision_rl.answers.parsing import format_boxes
from vision_rl.settings import AgentSettings

ANSWER = format_boxes([(0.2, 0.2, 0.4, 0.6)], "bbox")
SECOND = ZOOM.replace("[0.5, 0.0, 1.0, 0.5]", "[0.0, 0.5, 0.3, 0.9]")
BAD = ZOOM.replace("0.5", "500")


@pytest.mark.parametrize(
    ("replies", "changes"),
    [
        ([ANSWER], {}),
        ([ZOOM, ANSWER], {}),
        ([ZOOM + SECOND, ANSWER], {"max_images": 9}),
        ([BAD, SECOND, ANSWER], {}),
        ([ZOOM, SECOND, ANSWER], {"max_total_pixels": 120_000}),
        ([WAIT, ZOOM, ANSWER], {"media": "video", "frames": 3}),
        ([WAIT, ZOOM, ANSWER], {"frames": 2}),  # two pictures: waiting shows nothing new
    ],
)
@pytest.mark.parametrize("answer_view", ["last", "original"])
def test_views_and_answers(
    run: Any,  # noqa: F811
    replies: list[str],
    changes: dict[str, Any],
    answer_view: str,
    tmp_path: Path,
) -> None:
    model = Model(*replies)
    talk = run(model, answer_view=answer_view, **changes)
    (tmp_path / "pictures").mkdir()
    refs = [[_kept(tmp_path, url) for url in pictures_of(messages)] for messages in model.sent]
    frames = [tmp_path / f"{number}.png" for number in range(changes.get("frames", 1))]
    record = {"replies": talk.replies, "image_refs": refs, "image_paths": [str(path) for path in frames]}
    settings = AgentSettings(max_turns=3, answer_view=answer_view, answer_format="bbox", family="qwen2_5_vl")
    views = views_of(record, settings, record_pictures(tmp_path, record))
    shown = [call.view for call in talk.calls if call.view is not None]
    assert [view for view in views if view.box != (0.0, 0.0, 1.0, 1.0)] == shown
    [box] = answer_boxes(record, settings, views)
    assert box == pytest.approx(talk.view.to_picture((0.2, 0.2, 0.4, 0.6)))


def _kept(run_dir: Path, url: str) -> str:
    """As the proxy keeps it."""
    if not url.startswith("data:"):
        return url
    content = base64.b64decode(url.partition(",")[2])
    digest = hashlib.sha256(content).hexdigest()
    (run_dir / "pictures" / digest).write_bytes(content)
    return f"sha256:{digest}"
