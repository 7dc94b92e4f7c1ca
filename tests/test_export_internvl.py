"""InternVL's own files converted: the features of a picture are those of the original's arithmetic, written out here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from scripts.tiny_models.families.parts import TEXT, tokenizer
from vision_rl.errors import UserError
from vision_rl.export.internvl import convert
from vision_rl.models.table import check_pairing, model_info

WIDTH, HEADS, LAYERS, SIDE, PATCH = 64, 2, 2, 56, 14


def weights(generator: torch.Generator, vocabulary: int) -> dict[str, torch.Tensor]:
    """A tiny model's under InternVL's own names."""

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * (1.5 / shape[-1] ** 0.5 if len(shape) > 1 else 0.3) + (
            1.0 if len(shape) == 1 else 0.0
        )

    found = {
        "vision_model.embeddings.class_embedding": made(1, 1, WIDTH),
        "vision_model.embeddings.position_embedding": made(1, (SIDE // PATCH) ** 2 + 1, WIDTH),
        "vision_model.embeddings.patch_embedding.weight": made(WIDTH, 3, PATCH, PATCH),
        "vision_model.embeddings.patch_embedding.bias": made(WIDTH),
        **{f"mlp1.{part}": made(*shape) for part, shape in MLP.items()},
        "language_model.model.embed_tokens.weight": made(vocabulary, WIDTH),
        "language_model.model.norm.weight": made(WIDTH),
        "language_model.lm_head.weight": made(vocabulary, WIDTH),
    }
    for layer in range(LAYERS):
        found |= {f"vision_model.encoder.layers.{layer}.{name}": made(*shape) for name, shape in TOWER.items()}
        found |= {f"language_model.model.layers.{layer}.{name}": made(*shape) for name, shape in QWEN2.items()}
    return found


MLP = {
    "0.weight": (256,),
    "0.bias": (256,),
    "1.weight": (64, 256),
    "1.bias": (64,),
    "3.weight": (64, 64),
    "3.bias": (64,),
}
TOWER = {
    **{f"{norm}.{part}": (WIDTH,) for norm in ("norm1", "norm2") for part in ("weight", "bias")},
    **{"ls1": (WIDTH,), "ls2": (WIDTH,), "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.qkv.bias": (3 * WIDTH,)},
    **{"attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,), "mlp.fc1.weight": (96, WIDTH)},
    **{"mlp.fc1.bias": (96,), "mlp.fc2.weight": (WIDTH, 96), "mlp.fc2.bias": (WIDTH,)},
}
QWEN2 = {
    **{
        f"self_attn.{part}_proj.{kind}": shape
        for part in "qkv"
        for kind, shape in (("weight", (64, 64)), ("bias", (64,)))
    },
    **{"self_attn.o_proj.weight": (64, 64), "mlp.gate_proj.weight": (96, 64), "mlp.up_proj.weight": (96, 64)},
    **{"mlp.down_proj.weight": (64, 96), "input_layernorm.weight": (64,), "post_attention_layernorm.weight": (64,)},
}


def original_features(own: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """A tile's features by the arithmetic of InternVL's own modeling_intern_vit.py and modeling_internvl_chat.py."""
    tower = {name.removeprefix("vision_model."): tensor for name, tensor in own.items()}
    patches = functional.conv2d(
        pixels, tower["embeddings.patch_embedding.weight"], tower["embeddings.patch_embedding.bias"], PATCH
    )
    states = torch.cat([tower["embeddings.class_embedding"], patches.flatten(2).transpose(1, 2)], dim=1)
    states = states + tower["embeddings.position_embedding"]
    for layer in range(LAYERS):
        part = {
            name.split(f"layers.{layer}.")[-1]: t for name, t in tower.items() if f"encoder.layers.{layer}." in name
        }
        x = functional.layer_norm(states, (WIDTH,), part["norm1.weight"], part["norm1.bias"], 1e-6)
        qkv = functional.linear(x, part["attn.qkv.weight"], part["attn.qkv.bias"])
        q, k, v = qkv.reshape(1, -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = ((q * (WIDTH // HEADS) ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        attended = attended.transpose(1, 2).reshape(1, -1, WIDTH)
        states = states + functional.linear(attended, part["attn.proj.weight"], part["attn.proj.bias"]) * part["ls1"]
        x = functional.layer_norm(states, (WIDTH,), part["norm2.weight"], part["norm2.bias"], 1e-6)
        x = functional.gelu(functional.linear(x, part["mlp.fc1.weight"], part["mlp.fc1.bias"]))
        states = states + functional.linear(x, part["mlp.fc2.weight"], part["mlp.fc2.bias"]) * part["ls2"]
    rows = SIDE // PATCH
    grid = states[:, 1:].reshape(1, rows, rows, WIDTH)
    grid = grid.view(1, rows, rows // 2, WIDTH * 2).permute(0, 2, 1, 3).contiguous()
    grid = grid.view(1, rows // 2, rows // 2, WIDTH * 4).permute(0, 2, 1, 3).reshape(1, -1, WIDTH * 4)
    x = functional.layer_norm(grid, (WIDTH * 4,), own["mlp1.0.weight"], own["mlp1.0.bias"])
    x = functional.gelu(functional.linear(x, own["mlp1.1.weight"], own["mlp1.1.bias"]))
    return functional.linear(x, own["mlp1.3.weight"], own["mlp1.3.bias"])


def original(folder: Path, text: str = "qwen2", **more: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder in InternVL's own format, and its weights."""
    folder.mkdir()
    tok = tokenizer(["<img>", "</img>", "<IMG_CONTEXT>", "<quad>"])
    tok.save_pretrained(folder)
    vision = {
        **{"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS},
        **{"image_size": SIDE, "patch_size": PATCH, "norm_type": "layer_norm", "layer_norm_eps": 1e-6},
        **{"qkv_bias": True, "qk_normalization": False, "hidden_act": "gelu", "use_flash_attn": True},
    }
    config = {
        **{"model_type": "internvl_chat", "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"}},
        "llm_config": {**TEXT, "model_type": text, "vocab_size": len(tok), "architectures": ["Qwen2ForCausalLM"]},
        **{"vision_config": vision, "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1, **more},
    }
    (folder / "config.json").write_text(json.dumps(config))
    own = weights(torch.Generator().manual_seed(0), len(tok))
    parts = [{name: own[name] for name in sorted(own)[start::2]} for start in (0, 1)]
    for number, part in enumerate(parts):
        save_file(part, folder / f"model-0000{number + 1}-of-00002.safetensors")
    return folder, own


@pytest.mark.slow
def test_the_converted_model_sees_what_the_original_saw(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    folder, own = original(tmp_path / "own")
    convert(folder, tmp_path / "hf")
    check_pairing(model_info(tmp_path / "hf"))
    model, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = model.model.get_image_features(pixel_values=pixels)
    features = getattr(found, "pooler_output", found)
    torch.testing.assert_close(features.reshape(1, 4, WIDTH), original_features(own, pixels), rtol=1e-4, atol=1e-4)
    for name in ("model.norm.weight", "lm_head.weight", "model.layers.1.self_attn.q_proj.bias"):
        inner = name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1)
        assert torch.equal(model.get_parameter(inner), own[f"language_model.{name}"])
    shards = [load_file(path) for path in (tmp_path / "hf").glob("*.safetensors")]
    assert len(shards) == 2 and (tmp_path / "hf" / "model.safetensors.index.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"text": "internlm2"}, "the text part is a internlm2, whose classes come with the checkpoint"),
        ({"ps_version": "v1"}, "only ps_version=v2"),
        ({"model_type": "internvl"}, "is no InternVL of the original format"),
    ],
)
def test_what_cannot_be_converted_says_why(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder, _ = original(tmp_path / "own", **more)
    with pytest.raises(UserError, match=message):
        convert(folder, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
