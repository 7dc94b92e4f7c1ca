"""Load the model's processor as the model server does, with the model's own M-RoPE function."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from vision_rl.errors import UserError
from vision_rl.models.chat_templates import check_template_names

_MROPE_METHODS = ("get_rope_index", "get_vision_position_ids")


def load_processor(path: str, trust_remote_code: bool = False) -> Any:
    """The Hugging Face processor of the model folder or hub name `path`, for any family that transformers knows.

    verl 0.9.1's `hf_processor` (verl/utils/tokenizer/tokenizer.py) returns None for all but seven processor classes.
    Image processor backend: left to transformers, which takes torchvision, and Pillow for the Lanczos families (Idefics3,
    SmolVLM: image_processing_auto.py, DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS). vLLM 0.24 ends at the same choice: it
    asks for `use_fast=True` in the Qwen-VL, Ernie and Llama 4 rows, which is torchvision, and for nothing elsewhere. The
    two backends' resizing differs, and with the other one log-probabilities are off by 0.01.

    As in verl, the result carries `config`, and for M-RoPE families `get_rope_index`, the model class's own function.
    Raises `UserError` when there is no multimodal processor at `path`, or one that must not be saved.
    """
    from transformers import AutoConfig, AutoProcessor, ProcessorMixin

    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"the processor of {path} cannot be loaded: {error}") from error
    if not isinstance(processor, ProcessorMixin):
        raise UserError(
            f"{path} has no image processor, only {type(processor).__name__}: add preprocessor_config.json (or "
            "processor_config.json) of the original model"
        )
    check_template_names(processor, path)
    bind_positions(processor, config)
    return processor


def bind_positions(processor: Any, config: Any) -> None:
    """Give `processor` the model's `config` and, for M-RoPE families, its `get_rope_index`, the model class's own.

    `partial`, not a bound method as in verl: a processor with the latter cannot be unpickled.
    """
    from transformers import MODEL_MAPPING

    processor.config = config
    model_class = MODEL_MAPPING.get(type(config), None)
    if hasattr(model_class, "get_rope_index"):
        for name in _MROPE_METHODS:
            if hasattr(model_class, name):
                setattr(processor, name, partial(getattr(model_class, name), processor))


def check_template_shows_pictures(processor: Any, path: str) -> None:
    """Raise `UserError` if the chat template of the model at `path` leaves pictures out: the server would refuse every call."""
    text = {"type": "text", "text": "x"}
    try:
        seen, blind = (
            processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            for content in ([{"type": "image"}, text], [text])
        )
    except Exception:  # a template that takes texts alone: vLLM then places the picture itself
        return
    if seen == blind:
        raise UserError(
            f"the chat template of {path} leaves pictures out: a message with one reads like a message without; take the "
            "template of the vision model (chat_template.jinja, or chat_template in tokenizer_config.json)"
        )


def image_token_id(processor: Any) -> int:
    """The id that stands in a prompt once for every feature of a picture, as the model's config names it.

    Not the processor's `image_token_id`: Llama 4's is the mark before the last tile, where the model looks for patches.
    """
    config = getattr(processor, "config", None)
    for name in ("image_token_id", "image_token_index"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    return int(processor.image_token_id)


def vision_token_ids(processor: Any) -> list[int]:
    """The ids that stand for the features of pictures and, where the family has videos, of those."""
    config = getattr(processor, "config", None)
    named = (getattr(config, name, None) for name in ("video_token_id", "video_token_index"))
    return [image_token_id(processor), *(int(token) for token in named if token is not None)]


def medium_text(processor: Any, kind: Literal["image", "video"]) -> str:
    """What the chat template writes for a message of one picture or video: the text that the processor expands."""
    message = {"role": "user", "content": [{"type": kind}]}
    return str(processor.apply_chat_template([message], tokenize=False))
