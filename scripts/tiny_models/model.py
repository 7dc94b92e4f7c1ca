"""The tiny Qwen2.5-VL: real architecture, image processor and chat template in about one million parameters.

Left out on purpose: the default system message of Qwen2.5-VL's template (it would be a third of every prompt), and any
vocabulary beyond the words of the synthetic tasks (other text falls back to bytes, so every string can be encoded).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from vision_rl.agent.prompts import GROUNDING_PROMPT, VQA_PROMPT
from vision_rl.tiny.scenes import COLORS, COUNTS, ELEMENTS, PLACES, SHAPES, WORDINGS

PAD, END = "<|endoftext|>", "<|im_end|>"
SPECIAL_TOKENS = (
    PAD,
    "<|im_start|>",
    END,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PIXELS = {"min_pixels": 56 * 56, "max_pixels": 112 * 112, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
HIDDEN, LAYERS, HEADS, KEY_VALUE_HEADS, MLP = 128, 3, 4, 2, 256
VISION_HIDDEN, VISION_DEPTH, VISION_HEADS, VISION_MLP = 96, 2, 4, 192
NUMBER_WAVES = 4
MAX_LENGTH = 4096
ROPE_THETA = 1e6

# As Qwen2.5-VL's, plus the tool part of Qwen2.5's, minus the default system message. vLLM finds out that the template
# takes images by looking for a loop over message['content'], so that loop may not be hidden in a macro.
CHAT_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\n' }}
{%- if messages[0]['role'] == 'system' %}{{ messages[0]['content'] ~ '\\n\\n' }}{% endif %}
{{- '# Tools\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' ~ (tool | tojson) }}{% endfor %}
{{- '\\n</tools>\\nReply <tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call> to call one.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message['role'] == 'system') %}
{{- '<|im_start|>' ~ ('user' if message['role'] == 'tool' else message['role']) ~ '\\n' }}
{%- if message['role'] == 'tool' %}{{ '<tool_response>\\n' }}{% endif %}
{%- if message['content'] is string %}{{ message['content'] }}
{%- elif message['content'] %}
{%- for content in message['content'] %}
{%- if content['type'] == 'image' or 'image' in content or 'image_url' in content %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif content['type'] == 'video' or 'video' in content %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in content %}{{ content['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- for call in message['tool_calls'] or [] %}
{%- set function = call['function'] or call %}
{%- set arguments = function['arguments'] %}
{{- '\\n<tool_call>\\n{"name": "' ~ function['name'] ~ '", "arguments": ' }}
{{- arguments if arguments is string else (arguments | tojson) }}{{ '}\\n</tool_call>' }}
{%- endfor %}
{%- if message['role'] == 'tool' %}{{ '\\n</tool_response>' }}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in which a word of the tasks, and a number with two decimals, is one token."""
    pieces = r"<bbox>\[|\]</bbox>|, |[01]\.\d\d| ?\w+|\n|[^\w\s]|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    # Not Qwen2Tokenizer: since transformers 5 that class splits numbers into digits, whatever tokenizer.json says.
    built = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, unk_token=None, model_max_length=MAX_LENGTH
    )
    built.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    built.chat_template = CHAT_TEMPLATE
    return built


def _corpus() -> list[str]:
    """Text whose every piece (see `build_tokenizer`) shall be one token."""
    words = task_words()
    text = [
        *(VQA_PROMPT.format(question=wording) for wordings in WORDINGS.values() for wording in wordings),
        GROUNDING_PROMPT,
        *words,
        *(f" {word}" for word in words),
        *COUNTS,
        *(f"{number / 100:.2f}, " for number in range(101)),
        "<bbox>[]</bbox>user\nassistant\nsystem\ntool",
    ]
    return text * 2


def task_words() -> list[str]:
    """The words that name what is in a picture; each is one token, at the start of a text and after a space."""
    return [*COLORS, *SHAPES, *ELEMENTS, *(word for axis in PLACES for word in axis)]


def build_processor() -> Qwen2_5_VLProcessor:
    """The real processor around the small tokenizer, for images of 56 x 56 to 112 x 112 pixels."""
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**PIXELS),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**PIXELS),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The untrained model, in float32. Its output head is not tied: `warmstart.py` needs rows of its own in it."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": MLP,
            "num_hidden_layers": LAYERS,
            "max_window_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_VALUE_HEADS,
            "max_position_embeddings": MAX_LENGTH,
            "rope_theta": ROPE_THETA,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
            "use_sliding_window": False,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": ids[END],
            "pad_token_id": ids[PAD],
        },
        vision_config={
            "depth": VISION_DEPTH,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": VISION_MLP,
            "num_heads": VISION_HEADS,
            "out_hidden_size": HIDDEN,
            "in_channels": 3,
            "in_chans": 3,
            "patch_size": PIXELS["patch_size"],
            "spatial_patch_size": PIXELS["patch_size"],
            "spatial_merge_size": PIXELS["merge_size"],
            "temporal_patch_size": PIXELS["temporal_patch_size"],
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": list(range(VISION_DEPTH)),
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        vision_token_id=ids["<|vision_pad|>"],
        bos_token_id=None,
        eos_token_id=ids[END],
        pad_token_id=ids[PAD],
        tie_word_embeddings=False,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    _initialise(model, tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=[ids[END], ids[PAD]], pad_token_id=ids[PAD])
    return model


@torch.no_grad()
def _initialise(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Start where a small model trained for two minutes can get going: the usual 0.02 is made for large ones.

    - Matrices keep the scale of their input.
    - A word has one embedding, with or without the space before it, and the head starts as the embedding: what attention
      copies from a word, or from a visual token that was taught to resemble it, is an answer.
    - Numbers that are close have embeddings that are close.
    - Queries start as keys do, so that attention looks for what resembles the present token.
    """
    text = model.model.language_model
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    embeddings = text.embed_tokens.weight.normal_(0.0, 0.5)
    for word in task_words():
        (bare,), (spaced,) = tokenizer(word).input_ids, tokenizer(f" {word}").input_ids
        embeddings[bare] = embeddings[spaced]
    directions = torch.randn(2 * NUMBER_WAVES, HIDDEN)
    for hundredth in range(101):
        (number,) = tokenizer(f"{hundredth / 100:.2f}").input_ids
        angles = math.pi / 2 * hundredth / 100 * torch.arange(1, NUMBER_WAVES + 1)
        embeddings[number] = 0.5 * embeddings[number] + 0.25 * torch.cat([angles.sin(), angles.cos()]) @ directions
    model.lm_head.weight.copy_(0.4 * embeddings)
    for layer in text.layers:
        keys = layer.self_attn.k_proj.weight.view(KEY_VALUE_HEADS, 1, -1, HIDDEN)
        queries = layer.self_attn.q_proj.weight.view(KEY_VALUE_HEADS, HEADS // KEY_VALUE_HEADS, -1, HIDDEN)
        queries.copy_(keys.expand_as(queries))


def save_checkpoint(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path) -> None:
    """Write a checkpoint that transformers, vLLM and verl load: weights in bfloat16, a config that says float32.

    The weights of `model` must be bfloat16 values already (`round_weights`), so that what is read back is what was
    measured: a bfloat16 number is the same number in float32, whoever converts it.
    """
    processor.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    model.float()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        if "dtype" in part:
            part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def round_weights(model: torch.nn.Module) -> None:
    """Round every parameter to the nearest bfloat16 number, in place, keeping its dtype."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))
