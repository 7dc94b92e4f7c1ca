"""Convert InternVL's own files to transformers' format: `python -m vision_rl.export.internvl FOLDER OUTPUT`.

InternVL 2.5, 3 and 3.5 are published twice. The original folder (model_type internvl_chat) brings its classes as code, which is
not trained here; the one whose name ends in -hf has transformers' own. The weights are the same under other names, and the vision
tower's query, key and value are one matrix. For folders that were fine-tuned in the original format, and have no -hf twin.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vision_rl.errors import UserError, cli_errors

_NAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "vision_tower.embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "vision_tower.embeddings.patch_embeddings.projection."),
    (r"^vision_model\.encoder\.layers\.", "vision_tower.encoder.layer."),
    (r"(vision_tower\..*)\.ls(\d)$", r"\1.lambda_\2"),
    (r"(vision_tower\..*)\.norm1\.", r"\1.layernorm_before."),
    (r"(vision_tower\..*)\.norm2\.", r"\1.layernorm_after."),
    (r"(vision_tower\..*)\.attn\.proj\.", r"\1.attention.projection_layer."),
    (r"(vision_tower\..*)\.attn\.", r"\1.attention."),
    (r"^mlp1\.0\.", "multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "multi_modal_projector.linear_2."),
)
_TEXTS = ("qwen2", "qwen3", "qwen3_moe", "llama")
"""Text parts that transformers has. InternLM2, of some sizes of 2.5, comes as code, its tokenizer too."""
_VISION = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"),
    *("num_channels", "hidden_act", "layer_norm_eps", "norm_type", "initializer_range", "attention_dropout"),
)
_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<quad>",  # a name that the processor asks for; the template shows no videos, and <video> has no embedding
}
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] in ('image', 'image_url') %}"
    "<IMG_CONTEXT>\n{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def converted(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A weight of the original under transformers' names; (3 x width, ...) of query, key and value become three."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    if ".attention.qkv." not in name:
        yield name, tensor
        return
    for part, own in zip("qkv", tensor.chunk(3), strict=True):
        yield name.replace(".qkv.", f".{part}_proj."), own.contiguous()


def config_of(original: dict[str, Any], image_token_id: int) -> Any:
    """transformers' configuration of an original config.json. Raises `UserError` for what transformers does not have."""
    from transformers import InternVLConfig

    text, vision = original["llm_config"], original["vision_config"]
    if text.get("model_type") not in _TEXTS:
        raise UserError(
            f"the text part is a {text.get('model_type')}, whose classes come with the checkpoint; {', '.join(_TEXTS)} can be "
            "converted, and OpenGVLab publishes the other sizes with names that end in -hf"
        )
    if original.get("ps_version", "v2") != "v2" or original.get("select_layer", -1) != -1:
        raise UserError("only ps_version=v2 and select_layer=-1 can be converted, which is what OpenGVLab publishes")
    tower = {key: vision[key] for key in _VISION if key in vision}
    tower |= {"attention_bias": vision.get("qkv_bias", False), "use_qk_norm": vision.get("qk_normalization", False)}
    side = original.get("force_image_size") or vision["image_size"]
    tower |= {"image_size": [side, side], "patch_size": [vision["patch_size"]] * 2, "use_mean_pooling": True}
    patches = (side // vision["patch_size"]) ** 2
    ratio = original.get("downsample_ratio", 0.5)
    return InternVLConfig(
        text_config=text,
        vision_config=tower,
        image_token_id=image_token_id,
        downsample_ratio=ratio,
        image_seq_length=int(patches * ratio**2),
        tie_word_embeddings=text.get("tie_word_embeddings", False),
        architectures=["InternVLForConditionalGeneration"],
    )


def convert(folder: Path, output: Path) -> None:
    """Write `folder`, in InternVL's own format, into `output` in transformers'. Raises `UserError` for what it cannot be."""
    original = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if original.get("model_type") != "internvl_chat":
        raise UserError(f"{folder} is no InternVL of the original format: model_type {original.get('model_type')!r}")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no *.safetensors")
    processor = _processor(folder, original)
    config = config_of(original, processor.tokenizer.convert_tokens_to_ids(_TOKENS["context_image_token"]))
    output.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(output)
    processor.image_seq_length = config.image_seq_length
    processor.save_pretrained(output)
    _write_weights(files, output)


def _write_weights(files: list[Path], output: Path) -> None:
    """Shard by shard: a shard is all that is in memory."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    size = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            shard = {new: one for name in opened.keys() for new, one in converted(name, opened.get_tensor(name))}  # noqa: SIM118
        save_file(shard, output / file.name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file.name)
        size += sum(tensor.nbytes for tensor in shard.values())
    if len(files) > 1:
        document = {"metadata": {"total_size": size}, "weight_map": index}
        (output / "model.safetensors.index.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _processor(folder: Path, original: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer, GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    tokenizer = AutoTokenizer.from_pretrained(folder, extra_special_tokens=_TOKENS)
    rows = original["llm_config"].get("vocab_size", 0)
    for token in _TOKENS.values():
        if tokenizer.convert_tokens_to_ids(token) >= rows:  # it was just added: the original has no such token
            raise UserError(f"the tokenizer of {folder} has no {token}, so that it is no InternVL's")
    side = original.get("force_image_size") or original["vision_config"]["image_size"]
    size = {"height": side, "width": side}
    tiles = {"min_patches": original.get("min_dynamic_patch", 1), "max_patches": original.get("max_dynamic_patch", 12)}
    return InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True, **tiles),
        tokenizer,
        InternVLVideoProcessor(size=size),
        chat_template=_TEMPLATE,
    )


def main() -> None:
    """The command line."""
    with cli_errors():
        if len(sys.argv) != 3:
            raise UserError(
                "give the original folder and the one to write: python -m vision_rl.export.internvl FOLDER OUTPUT"
            )
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
        print(f"{sys.argv[2]}: train_agent.py --model {sys.argv[2]}")


if __name__ == "__main__":
    main()
