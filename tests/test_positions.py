"""Position ids of the M-RoPE families against verl's own, older implementation, padded and with several images."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from verl.models.transformers import qwen2_vl as verl_qwen2_vl
from verl.models.transformers import qwen3_vl as verl_qwen3_vl

from vision_rl.errors import UserError
from vision_rl.models.positions import position_ids, rope_index_of
from vision_rl.models.processor import bind_positions, check_template_shows_pictures, load_processor
from vision_rl.tiny import checkpoint_dir

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
GRIDS = torch.tensor([[1, 4, 6], [1, 8, 4]])


def tokenizer() -> Any:
    return AutoProcessor.from_pretrained(checkpoint_dir()).tokenizer


def special_ids(tok: Any) -> dict[str, int]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad", "vision_start_token_id": "vision_start"}
    return {key: tok.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


def qwen2(tok: Any) -> tuple[Any, Any]:
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
    text = {**TEXT, "vocab_size": len(tok), "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **special_ids(tok))
    processor = AutoProcessor.from_pretrained(checkpoint_dir())
    return Qwen2VLProcessor(
        Qwen2VLImageProcessor(), tok, video_processor=processor.video_processor, chat_template=processor.chat_template
    ), Qwen2VLForConditionalGeneration(config)


def qwen2_5(tok: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText

    processor = AutoProcessor.from_pretrained(checkpoint_dir())
    assert isinstance(processor, Qwen2_5_VLProcessor)
    return processor, AutoModelForImageTextToText.from_pretrained(checkpoint_dir())


def qwen3(tok: Any) -> tuple[Any, Any]:
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 32,
        "out_hidden_size": 32,
    }
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    text: dict[str, Any] = {**TEXT, "head_dim": 16, "vocab_size": len(tok)}
    text["rope_scaling"] = {"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **special_ids(tok))
    images = Qwen2VLImageProcessor(patch_size=16)
    return Qwen3VLProcessor(images, tok, video_processor=Qwen3VLVideoProcessor()), Qwen3VLForConditionalGeneration(
        config
    )


def padded_conversation(processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Left padding, text, image, text, image, text, right padding."""
    tok = processor.tokenizer
    start, pad, end = (tok.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "image_pad", "vision_end"))
    merge = processor.image_processor.merge_size**2
    ids: list[int] = tok("What color is the").input_ids
    for grid in GRIDS:
        ids += [start] + [pad] * (int(grid.prod()) // merge) + [end] + tok("square?").input_ids
    input_ids = torch.tensor([tok.pad_token_id] * 5 + ids + [tok.pad_token_id] * 3)
    mask = torch.tensor([0] * 5 + [1] * len(ids) + [0] * 3)
    return input_ids, mask


@pytest.mark.parametrize("family", [qwen2, qwen2_5, qwen3])
@pytest.mark.parametrize("grids", [GRIDS, None], ids=["pictures", "text only"])
def test_positions_equal_those_of_verls_own_implementation(family: Any, grids: torch.Tensor | None) -> None:
    processor, model = family(tokenizer())
    bind_positions(processor, model.config)
    input_ids, mask = padded_conversation(processor)
    if grids is None:
        input_ids[input_ids == processor.image_token_id] = processor.tokenizer.pad_token_id
    ours = position_ids(processor, input_ids, mask, {} if grids is None else {"image_grid_thw": grids})
    theirs = (verl_qwen3_vl if family is qwen3 else verl_qwen2_vl).get_rope_index(
        processor, input_ids, image_grid_thw=grids, attention_mask=mask
    )
    valid = mask.bool()
    assert ours.shape == (4, len(input_ids))
    assert torch.equal(ours[1:, valid], theirs[:, valid])
    assert ours[0, valid].tolist() == list(range(int(valid.sum())))


def test_other_families_count() -> None:
    class LlavaProcessor:
        pass

    assert rope_index_of(LlavaProcessor()) is None
    mask = torch.tensor([0, 0, 1, 1, 1, 0])
    assert position_ids(LlavaProcessor(), torch.zeros(6), mask, {}).tolist() == [0, 0, 0, 1, 2, 2]


def test_load_processor_gives_the_models_own_rope_index_and_can_be_pickled(tmp_path: Path) -> None:
    processor = load_processor(str(checkpoint_dir()))
    input_ids, mask = padded_conversation(processor)
    shipped = pickle.loads(pickle.dumps(processor))
    grids = {"image_grid_thw": GRIDS}
    assert torch.equal(position_ids(shipped, input_ids, mask, grids), position_ids(processor, input_ids, mask, grids))
    processor.save_pretrained(tmp_path)  # with every checkpoint
    assert (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize("missing", ["preprocessor_config.json", "everything"])
def test_a_folder_without_image_processor_is_one_sentence(tmp_path: Path, missing: str) -> None:
    if missing != "everything":
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).write_bytes((checkpoint_dir() / name).read_bytes())
    with pytest.raises(UserError, match=r"^(the processor of .* cannot be loaded|.* has no image processor)"):
        load_processor(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "shows"),
    [
        ("{% for part in message.content %}{{ part.text if part.type == 'text' else image }}{% endfor %}", True),
        ("{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}", False),
        ("{{ message.content + 'x' }}", True),  # for texts alone: vLLM places the picture
    ],
)
def test_a_template_that_leaves_pictures_out_is_named(content: str, shows: bool) -> None:
    """The server refuses every call of such a model, and each rollout was tried again and again."""
    processor = load_processor(str(checkpoint_dir()))
    check_template_shows_pictures(processor, "model")
    image = processor.tokenizer.decode([processor.image_token_id])
    processor.chat_template = f"{{% set image = '{image}' %}}{{% for message in messages %}}{content}{{% endfor %}}"
    if shows:
        check_template_shows_pictures(processor, "model")
        return
    with pytest.raises(
        UserError, match=r"the chat template of model leaves pictures out: .* take the template of the vision"
    ):
        check_template_shows_pictures(processor, "model")
