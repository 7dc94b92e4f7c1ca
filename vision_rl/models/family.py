"""One family of vision-language models: a row of the model table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vision_rl.errors import UserError

QWEN_TOKENS, QWEN3_TOKENS = "width x height / 784 after resizing", "width x height / 1024 after resizing"

Precision = Literal["float32", "bfloat16"]


_SGLANG_PARSERS = {"hermes": "qwen25", "qwen3_xml": "qwen3_coder", "llama4_pythonic": "pythonic"}
"""SGLang's names of vLLM's parsers, where they differ (srt/function_call/function_call_parser.py)."""


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """One family, everything about it in one row.

    examples: hub names. model_types: what its config.json says. architectures: its classes in the servers' registries.
    pattern: how a hub name is recognised. tool_parser: vLLM's name of the way in which its chat template has it write function
    calls, "" where it has none. vllm, sglang: whether that server knows them. coordinates: a row of
    vision_rl.answers.coordinates.FAMILIES. positions: "mrope" (3-D, computed by the model's own class) or "plain". tower: the
    name of its vision part below `model`, which LoRA leaves alone because vLLM cannot serve adapters there. precision: in
    which trainer and server are compared, "bfloat16" where vLLM's kernels for it take no float32. no_video: why it is not
    shown native videos (agent.video=native), "" where trainer and vLLM agree on them; a video's frames are pictures, for
    every family. no_sglang: why SGLang does not serve it, where it is more than that it does not know it.
    refused: why it cannot be trained, whatever the machine, with upstream's issue and what to take instead. unproven: why
    nobody has measured it here; a run trains it where `--doctor` has (vision_rl.preflight.evidence). Both "" where it is
    trained. proven_on_cpu: the matrix proves it, by code that a GPU does not run; there alone it is unproven.
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
    tool_parser: str = ""
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
    proven_on_cpu: bool = False
    notes: str = ""

    def parser_of(self, engine: str) -> str:
        """The name of `tool_parser` on "vllm" or "sglang"; `UserError` for a family that writes no function calls."""
        if not self.tool_parser:
            raise UserError(
                f"agent.tool_protocol=function: no parser is known for the calls of {self.name}; use agent.tool_protocol=text, "
                f"or name one that {engine} has under actor_rollout_ref.rollout.engine_kwargs.{engine}.tool_call_parser"
            )
        return self.tool_parser if engine == "vllm" else _SGLANG_PARSERS.get(self.tool_parser, self.tool_parser)

    @property
    def cpu_options(self) -> dict[str, Any]:
        """Arguments of vLLM's engine on a CPU. A model with linear attention keeps its states in float32, as vLLM's own kernel
        demands and where the checkpoint does not say, and no prefixes: the copy of a state is a Triton kernel."""
        if self.precision == "float32":
            return {"dtype": "float32"}
        return {"dtype": "bfloat16", "mamba_ssm_cache_dtype": "float32", "enable_prefix_caching": False}

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
