"""The parts of every tiny family: a byte-level tokenizer, a chat template, and random weights that make pictures matter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

SEED = 0
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
}
"""The language part of a tiny model: as small as vLLM's CPU attention allows (heads of 32)."""
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
"""One layer of linear attention (gated delta net), one of full attention."""
PAD, TURN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def tokenizer(tokens: Sequence[str] = (), named: Mapping[str, str] | None = None) -> Any:
    """A byte-level tokenizer without merges, and the family's own special `tokens`.

    named: special tokens that the family's processor asks the tokenizer for by name, such as {"image_token": "<image>"}.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens(
        [AddedToken("\n" * count, normalized=False) for count in range(1, 5)]
    )  # as Gemma's, where vLLM counts
    special = [PAD, TURN, END, *(named or {}).values(), *tokens]
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(special)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=END, pad_token=PAD, bos_token=PAD, extra_special_tokens=dict(named or {})
    )


def template(image: str, video: str = "", before: str = "") -> str:
    """A ChatML template whose pictures read as `image` and videos as `video`; `before` opens the conversation."""
    return (
        f"{before}{{% for message in messages %}}{TURN}{{{{ message['role'] }}}}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        f"{{% if part['type'] in ('image', 'image_url') %}}{image}"
        f"{{% elif part['type'] in ('video', 'video_url') %}}{video}"
        "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        f"{END}\n{{% endfor %}}{{% if add_generation_prompt %}}{TURN}assistant\n{{% endif %}}"
    )


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fill every weight of two or more dimensions from `seed`, so that activations neither vanish nor explode, and move norms and
    biases off their start.

    transformers' own start (standard deviation 0.02) gives a nearly flat model on which a wrong picture would not show. Norms
    of one and biases of zero would hide a server that does not load them.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim >= 2:
                stacked = parameter.ndim == 3 and "experts" in name  # (experts, ., .) rather than one kernel
                inputs = parameter.shape[-1] if stacked else parameter[0].numel()
                parameter.normal_(0, 1.5 / inputs**0.5, generator=generator)
            else:
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.05, generator=generator))


def save(model: Any, processor: Any, folder: Path, seed: int) -> Path:
    """Write the checkpoint of a family in float32, with generation settings that end a turn where the template does."""
    randomise(model, seed)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.float().save_pretrained(folder)
    _published_names(model, folder / "model.safetensors")
    processor.save_pretrained(folder)
    return folder


def _published_names(model: Any, weights: Path) -> None:
    """Make the file what published checkpoints are, where transformers 5 differs and converts on loading only.

    CLIP and SigLIP towers have `vision_model.` in their names, and Qwen3-VL's experts are (experts, in, out).
    """
    from safetensors.torch import load_file, save_file
    from transformers import CLIPVisionModel, Siglip2VisionModel, SiglipVisionModel

    tensors, towers = load_file(weights), (CLIPVisionModel, SiglipVisionModel, Siglip2VisionModel)
    if any(isinstance(part, towers) for part in model.modules()):
        tensors = {re.sub(r"vision_tower\.", "vision_tower.vision_model.", name): t for name, t in tensors.items()}
    if model.config.model_type == "qwen3_vl_moe":
        stacked = [name for name in tensors if ".experts." in name]
        tensors |= {name: tensors[name].transpose(1, 2).contiguous() for name in stacked}
    save_file(tensors, weights, metadata={"format": "pt"})
