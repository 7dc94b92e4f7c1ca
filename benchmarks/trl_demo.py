"""Train the demo with TRL's GRPOTrainer; `against_trl.py` starts this script in a process of its own.

    PYTHONPATH=TRL_FOLDER python benchmarks/trl_demo.py '{"train": ..., "val": ..., "rollouts": 128, ...}'

Same checkpoint, rows, prompt, reward, group size, learning rate, clipping, sampling and precision as `train_agent.py`
with the preset cpu. Generation is transformers' own, in this process, which is what TRL does where there is no GPU.
Prints one JSON object as its last line.
"""

from __future__ import annotations

import time

STARTED = time.time()

import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from typing import Any  # noqa: E402

import datasets  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from vision_rl.agent.prompts import vqa_text  # noqa: E402
from vision_rl.data.schema import read_rows  # noqa: E402
from vision_rl.rewards import vqa_reward  # noqa: E402
from vision_rl.tiny import checkpoint_dir  # noqa: E402

Row = dict[str, Any]


class Clock(TrainerCallback):  # type: ignore[misc]
    """When the first step began and when each step ended, in seconds since this process started."""

    def __init__(self) -> None:
        self.began = 0.0
        self.ended: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.time() - STARTED

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended.append(time.time() - STARTED)


def reward(completions: list[Any], answers: list[list[str]], **_: Any) -> list[float]:
    """The project's own reward of each reply."""
    return [
        vqa_reward(completion[0]["content"], truth).value
        for completion, truth in zip(completions, answers, strict=True)
    ]


def data_set(rows: list[Row]) -> datasets.Dataset:
    """Rows as TRL wants them; a picture is opened when its row is used, as in any training with TRL."""
    columns = {
        "prompt": [[{"role": "user", "content": vqa_text(row["question"])}] for row in rows],
        "image": [row["image_paths"][0] for row in rows],
        "answers": [row["answers"] for row in rows],
    }
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def configuration(settings: dict[str, Any], folder: str) -> GRPOConfig:
    """verl's settings under the preset cpu, by TRL's names."""
    micro = min(settings["rollouts"], settings["micro_batch"])
    return GRPOConfig(
        output_dir=folder,
        max_steps=settings["steps"],
        seed=settings["seed"],
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings["rollouts"] // micro,
        num_generations=settings["group"],
        max_completion_length=settings["max_tokens"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=1.0,
        temperature=1.0,
        top_p=1.0,
        beta=0.0,
        epsilon=0.2,
        loss_type="dapo",  # the mean over all tokens of a step, verl's "token-mean"
        scale_rewards="group",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        use_vllm=False,
        log_multimodal=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


@torch.no_grad()
def validate(model: Any, processor: Any, rows: list[Row], max_tokens: int) -> float:
    """Mean accuracy of one greedy reply per row, as the project's validation."""
    total = 0.0
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        messages = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": row["image_paths"][0]},
                        {"type": "text", "text": vqa_text(row["question"])},
                    ],
                }
            ]
            for row in part
        ]
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        replies = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)[
            :, inputs["input_ids"].shape[1] :
        ]
        texts = processor.batch_decode(replies, skip_special_tokens=True)
        total += sum(
            vqa_reward(text, row["answers"]).components["accuracy"] for text, row in zip(texts, part, strict=True)
        )
    return total / len(rows)


def main() -> None:
    settings = json.loads(sys.argv[1])
    rows, val_rows = read_rows(settings["train"]), read_rows(settings["val"])
    processor = AutoProcessor.from_pretrained(checkpoint_dir())
    model = AutoModelForImageTextToText.from_pretrained(checkpoint_dir(), dtype=torch.float32)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            processing_class=processor,
            reward_funcs=reward,
            args=configuration(settings, folder),
            train_dataset=data_set(rows),
            callbacks=[clock],
        )
        trainer.train()
    model.eval()
    lengths = [log["completions/mean_length"] for log in trainer.state.log_history if "completions/mean_length" in log]
    result = {
        "startup_seconds": clock.began,
        "step_seconds": [end - start for start, end in zip([clock.began, *clock.ended], clock.ended, strict=False)],
        "reward": [log["reward"] for log in trainer.state.log_history if "reward" in log],
        "reply_tokens": sum(lengths) / len(lengths),
        "validation": validate(model, processor, val_rows, settings["max_tokens"]),
    }
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
