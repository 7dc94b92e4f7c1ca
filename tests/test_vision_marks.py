"""Texts that look like a picture to a tokenizer: found by verify, written with a blank by agents, refused at the proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data_samples import picture
from vision_rl.agent.messages import user_message, video_message
from vision_rl.data.schema import write_rows
from vision_rl.data.verify import verify
from vision_rl.models.tokens import VISION_MARK, forbidden_token_ids, neutralised
from vision_rl.rollout.chat_request import CallError, checked

MARKS = (
    *("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),  # Qwen
    *(
        "<|image|>",
        "<|video|>",
        "<|begin_of_image|>",
        "<|end_of_video|>",
        "<|patch|>",
        "<|tile_x_separator|>",
    ),  # GLM, Llama 4
    *("<IMG_CONTEXT>", "<start_of_image>", "<image_soft_token>", "<fake_token_around_image>", "[IMG]", "[IMG_BREAK]"),
)
HARMLESS = (
    "<|im_start|>",
    "<|box_start|>",
    "<|object_ref_end|>",
    "image_pad",
    "a < b > c",
    "[IMAGE]",
    "<| image_pad|>",
    "<b>",
)


@pytest.mark.parametrize("text", [*MARKS, *HARMLESS])
def test_where_a_mark_is_found(text: str, tmp_path: Path) -> None:
    question = f"What is {text} for?"
    marked = text in MARKS
    assert bool(VISION_MARK.search(question)) == marked
    assert (neutralised(question) == question) == (not marked)
    assert not VISION_MARK.search(neutralised(question))

    for message in (user_message(question, ["data:image/png;base64,AA"]), video_message(question, ["data:,AA"])):
        assert message["content"][-1] == {"type": "text", "text": neutralised(question)}  # type: ignore[index]

    picture((20, 20), 1).save(tmp_path / "a.png")
    write_rows(tmp_path / "x.parquet", [{"image_paths": ["a.png"], "question": question, "answers": ["a"]}])
    reasons = [problem.reason for problem in verify(tmp_path / "x.parquet").problems]
    assert reasons == ([f"its question holds {text!r}, a token by which models mark pictures; remove it"] * marked)


@pytest.mark.parametrize("content", [lambda text: text, lambda text: [{"type": "text", "text": text}]])
def test_a_client_of_its_own_is_reported(content: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": content("see <|image_pad|>")}]}
    with pytest.raises(
        CallError, match=r"a text holds '<\|image_pad\|>', by which vision models mark pictures"
    ) as caught:
        checked(body, traced=True)
    assert caught.value.status == 400
    checked({**body, "messages": [{"role": "user", "content": content(neutralised("see <|image_pad|>"))}]}, traced=True)


def test_no_token_of_the_model_is_left(tiny_processor: Any) -> None:
    tokenizer = tiny_processor.tokenizer
    forbidden = set(forbidden_token_ids(tiny_processor))
    text = "".join(tokenizer.convert_ids_to_tokens(sorted(forbidden)))
    assert forbidden <= set(tokenizer(text)["input_ids"])
    assert not forbidden & set(tokenizer(neutralised(text))["input_ids"])
