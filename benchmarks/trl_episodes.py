"""The browser's episodes under TRL's `environment_factory`; `episodes.py --trl` starts this script in a process of its own.

    PYTHONPATH=TRL_FOLDER python benchmarks/trl_episodes.py '{"groups": 8, "group": 8, "steps": 4, ...}'

One step plays all episodes: TRL resets one environment for each of them, one after the other, generates in this process and
scores. The picture comes from `reset` as a part of the message (TRL 1.16's documentation names text only, its code takes
both). The tiny model calls no tools, so that the click of its reply is played where TRL computes rewards. Seconds are from
the first reset of a step to its last click; the update is not in them. Prints one JSON object as its last line.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any, ClassVar

import datasets
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from vision_rl.settings import AgentSettings
from vision_rl.tasks import get_task

TASK = get_task("miniwob")
SETTINGS = AgentSettings(answer_format="bbox", max_turns=1, max_tokens=24)


class Page:
    """A page with a browser of its own, as TRL wants it: an instance for each rollout of a step."""

    began: ClassVar[list[float]] = []  # of each reset, of all pages
    pictures: ClassVar[list[bytes]] = []

    def __init__(self) -> None:
        self._page = TASK.environment.make()

    def reset(self, seed: int, **_: Any) -> list[dict[str, Any]]:
        """The page of this seed, its text and its picture."""
        Page.began.append(time.monotonic())
        seen = self._page.reset(seed=seed, options={"env": "click-test-2", "shade": True})
        [self._picture] = seen.pictures
        Page.pictures.append(self._picture.tobytes())
        how = TASK.environment.actions.ask(SETTINGS, self._picture.size)
        return [{"type": "image", "image": self._picture}, {"type": "text", "text": f"{seen.text}\n{how}"}]

    def _click(self, reply: str) -> float:
        """What the click of a reply earns, 0 for a reply without one."""
        action = TASK.environment.actions.read(reply, SETTINGS, self._picture.size, self._picture.size)
        return 0.0 if action is None else float(self._page.last_step(action).reward)


def main() -> None:
    """The command line."""
    given = json.loads(sys.argv[1])
    episodes = given["groups"] * given["group"]
    seconds: list[float] = []

    def score(completions: list[Any], environments: list[Page], **_: Any) -> list[float]:
        found = [page._click(said[0]["content"]) for page, said in zip(environments, completions, strict=True)]
        seconds.append(time.monotonic() - Page.began[-episodes])
        return found

    seeds = range(given["first"], given["first"] + given["groups"] * given["steps"])
    rows = {"prompt": [[{"role": "user", "content": ""}] for _ in seeds], "seed": list(seeds)}
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder, max_steps=given["steps"], learning_rate=0.0, use_cpu=True, bf16=False, use_vllm=False,
            per_device_train_batch_size=episodes, num_generations=given["group"], gradient_checkpointing=False,
            max_completion_length=SETTINGS.max_tokens, temperature=1.0, beta=0.0,
            log_multimodal=False, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=AutoModelForImageTextToText.from_pretrained(given["model"], dtype=torch.float32),
            processing_class=AutoProcessor.from_pretrained(given["model"]),
            reward_funcs=score,
            environment_factory=Page,
            train_dataset=datasets.Dataset.from_dict(rows),
            args=settings,
        )
        trainer.train()
    print("\n" + json.dumps({"seconds": seconds, "pictures": len(set(Page.pictures))}))


if __name__ == "__main__":
    main()
