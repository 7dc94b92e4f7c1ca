#!/usr/bin/env bash
# transformers 5.10.4, torch 2.11.0: the processor of Qwen3-VL turns `<|vision_start|><|video_pad|><|vision_end|>`, which is what
# the models' chat templates write for a video, into a pair of marks for each frame, and keeps the template's pair around them
# all. vLLM 0.24 writes the frames' pairs only, so that a prompt tokenised by either has two tokens more or fewer. Seen:
#   2 time steps, 3 vision_start, 3 vision_end
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.10.4 torch==2.11.0 torchvision==0.26.0
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

MARKS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}
characters = Tokenizer(models.WordLevel({text: number for number, text in enumerate(["?", *"<0123456789.>"])}, unk_token="?"))
characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=characters, unk_token="?", pad_token="?", extra_special_tokens=MARKS,
    additional_special_tokens=list(MARKS.values()),
)
processor = Qwen3VLProcessor(Qwen2VLImageProcessor(patch_size=16), tokenizer, Qwen3VLVideoProcessor(), chat_template="unused")
frames = np.zeros((4, 3, 64, 64), dtype=np.uint8)
inputs = processor(
    text=["<|vision_start|><|video_pad|><|vision_end|>"], videos=[frames], return_tensors="pt", do_sample_frames=False,
    video_metadata=[{"fps": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}],
)
ids = inputs["input_ids"][0].tolist()
steps = int(inputs["video_grid_thw"][0, 0])
starts, ends = (ids.count(tokenizer.convert_tokens_to_ids(MARKS[name])) for name in ("vision_bos_token", "vision_eos_token"))
print(f"{steps} time steps, {starts} vision_start, {ends} vision_end")
assert (steps, starts, ends) == (2, 3, 3), "the behaviour has changed"
PYTHON
