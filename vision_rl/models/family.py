"""One family of vision-language models: a row of the model table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QWEN_TOKENS, QWEN3_TOKENS = "width x height / 784 after resizing", "width x height / 1024 after resizing"

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """One family, everything about it in one row.

    examples: hub names. model_types: what its config.json says. architectures: its classes in the servers' registries.
    pattern: how a hub name is recognised. vllm, sglang: whether that server knows them. coordinates: a row of
    vision_rl.answers.coordinates.FAMILIES. positions: "mrope" (3-D, computed by the model's own class) or "plain". tower: the
    name of its vision part below `model`, which LoRA leaves alone because vLLM cannot serve adapters there. precision: in
    which trainer and server are compared, "bfloat16" where vLLM's kernels for it take no float32. no_video: why it is not
    shown native videos (agent.video=native), "" where trainer and vLLM agree on them; a video's frames are pictures, for
    every family. no_sglang: why SGLang does not serve it, where it is more than that it does not know it.
    refused: why it cannot be trained, whatever the machine, with upstream's issue and what to take instead. unproven: why
    nobody has measured it here; a run trains it where `--doctor` has (vision_rl.preflight.evidence). Both "" where it is
    trained.
    Not in the row, because the checkpoint itself says it: special tokens (vision_rl.models.tokens), processor
    (vision_rl.models.processor).
    """

    name: str
    examples: tuple[str, ...]
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    pattern: str
    tokens_per_image: str
    memory: str
    vllm: bool = True
    sglang: bool = False
    coordinates: str = "unit"
    positions: str = "plain"
    tower: str = "vision_tower"
    precision: Precision = "float32"
    no_video: str = "it has no videos of its own"
    no_sglang: str = ""
    refused: str = ""
    unproven: str = ""
    notes: str = ""

    @property
    def trained(self) -> bool:
        """Whether the repository's own matrix proves it."""
        return not (self.refused or self.unproven)

    @property
    def remarks(self) -> str:
        """What stands below the printed table: why it is not trained, or what is special, and why not with SGLang."""
        with_sglang = "" if self.refused or not self.no_sglang else f"not with SGLang: {self.no_sglang}"
        return "; ".join(part for part in (self.refused or self.unproven or self.notes, with_sglang) if part)

    @property
    def resizes(self) -> bool:
        """Whether its processor takes min_pixels and max_pixels (the Qwen-VL processors and those built on them)."""
        return self.coordinates.startswith("qwen")
