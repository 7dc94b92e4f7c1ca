#!/usr/bin/env bash
# trl 1.16.0, transformers 5.10.4, torch 2.11.0: GRPOTrainer's documentation says that the `reset` of an `environment_factory` returns
# "either None or a string". A list of content parts is taken as well, and a picture among them reaches the model: its tokens
# stand in the prompt, its pixels in the forward pass. Each rollout of a step has an instance of its own. Seen:
#   4 instances for 4 rollouts, reset returned a picture, 16 picture tokens in each prompt, pixels in the forward pass
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet trl==1.16.0 transformers==5.10.4 torch==2.11.0 torchvision==0.26.0 jmespath==1.1.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import inspect

import datasets
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from trl import GRPOConfig, GRPOTrainer

MARKS = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|end|>"]
TEMPLATE = """{%- for message in messages %}{{ message['role'] }}:
{%- if message['content'] is string %}{{ message['content'] }}{%- else %}{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{%- else %}{{ part['text'] }}{%- endif %}
{%- endfor %}{%- endif %}
{%- for call in message['tool_calls'] or [] %}{{ call['function']['name'] }}{{ call['function']['arguments'] | tojson }}{%- endfor %}
{{- '<|end|>' }}{%- endfor %}{%- if add_generation_prompt %}assistant:{%- endif %}"""
letters = Tokenizer(models.WordLevel({chr(n): n - 31 for n in range(32, 127)} | {"?": 0}, unk_token="?"))
letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=letters, unk_token="?", pad_token="?", eos_token="<|end|>", additional_special_tokens=MARKS
)
ids = dict(zip(MARKS, tokenizer.convert_tokens_to_ids(MARKS), strict=True))
processor = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=TEMPLATE)
text = dict(
    vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    bos_token_id=None, eos_token_id=ids["<|end|>"], pad_token_id=0,
)
config = Qwen2_5_VLConfig(
    text_config=text, vision_config=dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=32),
    image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
    vision_end_token_id=ids["<|vision_end|>"],
)
model = Qwen2_5_VLForConditionalGeneration(config)
instances, pixels, tokens = [], [], []


class Room:
    def __init__(self):
        instances.append(self)

    def reset(self, **row):
        return [{"type": "image", "image": Image.new("RGB", (112, 112), "red")}, {"type": "text", "text": "Where is it?"}]


def look(module, args, kwargs):
    if kwargs.get("pixel_values") is not None:
        pixels.append(tuple(kwargs["pixel_values"].shape))
        tokens.extend((kwargs["input_ids"] == ids["<|image_pad|>"]).sum(1).tolist())


def reward(completions, **_):
    return [float(len(one[0]["content"]) % 3) for one in completions]


model.register_forward_pre_hook(look, with_kwargs=True)
GRPOTrainer(
    model=model, processing_class=processor, reward_funcs=reward, environment_factory=Room,
    train_dataset=datasets.Dataset.from_dict({"prompt": [[{"role": "user", "content": ""}]] * 2}),
    args=GRPOConfig(
        output_dir="out", max_steps=1, per_device_train_batch_size=4, num_generations=2, max_completion_length=4, use_cpu=True,
        bf16=False, use_vllm=False, gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True,
    ),
).train()
said = " ".join(inspect.getdoc(GRPOTrainer).split())
assert "should return either `None` or a string" in said, "the documentation has changed"
print(
    f"{len(instances)} instances for 4 rollouts, reset returned a picture, {tokens[0]} picture tokens in each prompt, "
    f"{'pixels' if pixels else 'no pixels'} in the forward pass"
)
assert len(instances) == 4 and set(tokens) == {16} and pixels, "the behaviour has changed"
PYTHON
