"""The training batch that sees: token ids from the trace, pixels and positions that belong to them.

Replaces `AgentModeDaemon.get_train_data_batch` of Agent Lightning 0.3.0 (agentlightning/verl/daemon.py:866), which never
adds `multi_modal_inputs`, so that actor and reference compute the log-probabilities of a model that cannot see (issues
559, 441, 482, 334 there). It also keeps rewards in bfloat16, cuts prompts through their images, and processes each picture
once per rollout. It can go when a release of Agent Lightning carries pull request 560.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from verl import DataProto

from vision_rl.engine.pixels import Pixels
from vision_rl.engine.positions import position_ids
from vision_rl.engine.processor import image_token_id
from vision_rl.errors import UserError


@dataclass(frozen=True)
class Sample:
    """One sequence to train on: the prompt, then response tokens of which `response_mask` marks the model's own.

    `rollout_log_probs` holds one value per response token (0 where the mask is 0). `data_id` names the group,
    `rollout_id` the rollout; a rollout of several turns may give several samples, all with the rollout's one reward.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    response_mask: list[int]
    rollout_log_probs: list[float]
    image_refs: list[str]
    reward: float
    data_id: str
    rollout_id: str
    turn_index: int


@dataclass
class Built:
    """A batch and what was left out of it, by reason."""

    batch: DataProto
    dropped: Counter[str] = field(default_factory=Counter)
    truncated_responses: int = 0


class BatchBuilder:
    """Turns samples into verl's `DataProto`; samples that cannot be trained on are dropped and counted, never mended."""

    def __init__(
        self, processor: Any, pad_token_id: int, pixels: Pixels, *, max_prompt_length: int, max_response_length: int
    ) -> None:
        self.processor = processor
        self.image_token_id = image_token_id(processor)
        self.pad_token_id = pad_token_id
        self.pixels = pixels
        self.max_prompt_length = max_prompt_length
        self.max_response_length = max_response_length

    def build(self, samples: Sequence[Sample]) -> Built:
        """The batch of all usable samples; raises `UserError` if none is left."""
        dropped: Counter[str] = Counter()
        kept: list[Sample] = []
        vision: list[dict[str, torch.Tensor]] = []
        for sample in samples:
            reason, inputs = self._check(sample)
            if reason:
                dropped[reason] += 1
            else:
                kept.append(sample)
                vision.append(inputs)
        if not kept:
            raise UserError(
                f"no sample of this step can be trained on ({dict(dropped)}); see rollouts.jsonl in the run folder"
            )
        truncated = sum(len(sample.response_ids) > self.max_response_length for sample in kept)
        return Built(self._assemble(kept, vision), dropped, truncated)

    def _check(self, sample: Sample) -> tuple[str, dict[str, torch.Tensor]]:
        """Why a sample must not be trained on ("" if it may), and its vision inputs."""
        if not sample.prompt_ids or not sample.response_ids:
            return "empty", {}
        if len(sample.rollout_log_probs) != len(sample.response_ids):
            return "no_logprobs", {}
        if len(sample.prompt_ids) > self.max_prompt_length:
            return "prompt_too_long", {}  # a cut could run through an image
        try:
            inputs = self.pixels.inputs(sample.image_refs)
        except UserError:
            return "unreadable_image", {}
        ids = sample.prompt_ids + sample.response_ids[: self.max_response_length]
        if ids.count(self.image_token_id) != self.pixels.placeholders(sample.image_refs):
            return "image_tokens_disagree", {}
        return "", inputs

    def _assemble(self, samples: list[Sample], vision: list[dict[str, torch.Tensor]]) -> DataProto:
        """Left-padded prompts and right-padded responses, as wide as this batch needs."""
        prompt_width = max(len(sample.prompt_ids) for sample in samples)
        width = min(self.max_response_length, max(len(sample.response_ids) for sample in samples))

        prompts = torch.full((len(samples), prompt_width), self.pad_token_id)
        responses = torch.full((len(samples), width), self.pad_token_id)
        attention_mask = torch.zeros((len(samples), prompt_width + width), dtype=torch.long)
        response_mask = torch.zeros((len(samples), width), dtype=torch.long)
        log_probs = torch.zeros((len(samples), width))
        scores = torch.zeros((len(samples), width))
        for i, sample in enumerate(samples):
            n, m = len(sample.prompt_ids), min(len(sample.response_ids), width)
            prompts[i, prompt_width - n :] = torch.tensor(sample.prompt_ids)
            responses[i, :m] = torch.tensor(sample.response_ids[:m])
            attention_mask[i, prompt_width - n : prompt_width + m] = 1
            response_mask[i, :m] = torch.tensor(sample.response_mask[:m])
            log_probs[i, :m] = torch.tensor(sample.rollout_log_probs[:m])
            scores[i, m - 1] = sample.reward
        input_ids = torch.cat([prompts, responses], dim=-1)
        positions = [
            position_ids(self.processor, input_ids[i], attention_mask[i], vision[i].get("image_grid_thw"))
            for i in range(len(samples))
        ]
        tensors = {
            "prompts": prompts,
            "responses": responses,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": torch.stack(positions),
            "response_mask": response_mask,
            "rollout_log_probs": log_probs,
            "token_level_scores": scores,
        }
        return DataProto(
            batch=TensorDict(tensors, batch_size=len(samples)),  # type: ignore[arg-type]
            non_tensor_batch={
                "multi_modal_inputs": _object_array(vision),
                "uid": _object_array([sample.data_id for sample in samples]),
                "rollout_id": _object_array([sample.rollout_id for sample in samples]),
                "turn_index": np.array([sample.turn_index for sample in samples]),
            },
        )


def _object_array(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array
