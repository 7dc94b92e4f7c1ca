"""Patches for model families of transformers 5.10 that verl 0.9.1's actor does not support yet.

The parity matrix (docs/models.md) fails without each of these; what it finds equal needs none.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import verl.utils.flops_counter as flops_counter
import verl.utils.fsdp_utils as fsdp_utils

from vision_rl.media.references import is_video
from vision_rl.models.pixels import Pixels, View, join

VISION_TOWERS = ("visual", "vision_tower", "vision_model", "multi_modal_projector", "vision_encoder")
"""What the families call the part that sees, projector included, below `model` (or `model.model`)."""

_verls_sharded_layers = fsdp_utils._select_fsdp2_wrap_targets
_VERLS_FORWARD = ("qwen2_vl", "qwen2_5_vl", "glm4v")
_SHARED = (*_VERLS_FORWARD, "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
"""Families whose forward is verl's and asks `visual(pixels, grid_thw=...)` for all pictures of a micro-batch at once."""


def mend(module: Any) -> None:
    """What a module needs once it is built and cast."""
    answer_with_tensors(module)
    restore_rotations(module)
    norm_in_float32(module)


def norm_in_float32(module: Any) -> None:
    """Norm queries and keys of linear attention (Qwen3.5) in float32, as vLLM and FLA do.

    transformers 5.10 norms them in the model's dtype where FLA is not installed (`l2norm`, before the delta rule goes over to
    float32; vllm issue 51779): in bfloat16 that widens the trainer's rounding. Can go with transformers 5.24.
    """
    for name in {type(part).__module__ for part in module.modules() if hasattr(part, "chunk_gated_delta_rule")}:
        modeling: Any = sys.modules[name]
        if (norm := getattr(modeling, "l2norm", None)) and not hasattr(norm, "mended"):
            modeling.l2norm = lambda x, dim=-1, eps=1e-6, norm=norm: norm(x.float(), dim, eps)
            modeling.l2norm.mended = True


def answer_with_tensors(module: Any) -> None:
    """Let `visual(...)` answer with a plain tensor where verl's own forward asks it.

    verl 0.9.1 calls `model.visual(...).mean()` for a micro-batch without pictures of Qwen2-VL and Qwen2.5-VL, and
    `.shape` of any answer for GLM-4.1V (models/transformers/qwen2_vl.py:393, glm4v.py), but under transformers 5
    `visual` answers with an output object. Can go when verl unpacks it, as in qwen3_vl.py.
    """
    visual = getattr(getattr(module, "model", module), "visual", None)
    if visual is not None and module.config.model_type in _VERLS_FORWARD:
        visual.register_forward_hook(lambda _module, _args, output: getattr(output, "pooler_output", output))
    if module.config.model_type == "mistral3":
        # transformers 5.10 squeezes the first dimension of the features (modeling_mistral3.py:243), which are (tokens, width):
        # a picture of one token lost the wrong one
        projector = module.model.multi_modal_projector
        projector.register_forward_hook(lambda _module, _args, features: features.unsqueeze(0))


def sharded_layers(module: Any, layers: Any) -> list[Any]:
    """As verl's `_select_fsdp2_wrap_targets` (utils/fsdp_utils.py), without the vision tower's embeddings.

    verl 0.9.1 shards every embedding by itself. LLaVA-NeXT's and LLaVA-OneVision's lie in a layer that is sharded too, the
    outer before the inner, and GLM-4V's tower reads the weight without calling the embedding: both ended at their first
    picture with "mixed torch.Tensor and DTensor". A tower's embedding is now sharded with what holds it.
    """
    within = {
        id(part)
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Embedding) and any(tower in name.split(".") for tower in VISION_TOWERS)
    }
    return [part for part in _verls_sharded_layers(module, layers) if id(part) not in within]


def count_glm_flops(config: Any, *measured: Any) -> float:
    """verl 0.9.1 looks for GLM-4V's sizes in the whole configuration (utils/flops_counter.py), which has them in its text part:
    AttributeError after the first update. measured: tokens, their lengths and the seconds, as verl hands them over."""
    flops: float = flops_counter._estimate_qwen2_flops(config.text_config, *measured)
    return flops


def restore_rotations(module: Any) -> None:
    """Compute the complex rotations of Llama 4's tower anew, after the module was cast to another dtype.

    verl 0.9.1 casts the whole module (workers/engine/fsdp/transformer_impl.py:333, `module.to(torch_dtype)`), by which torch
    drops the imaginary part of a complex buffer, with a warning: the tower then hardly knows where its patches are.
    """
    for part in module.modules():
        if hasattr(part, "_compute_freqs_ci"):
            part.freqs_ci = part._compute_freqs_ci(part.config)


def merge_pictures(samples: Sequence[Any], indices: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
    """The vision inputs of a micro-batch from those of its samples; in place of verl's `extract_multi_modal_inputs`.

    verl (utils/model.py) joins tensors of equal shape only, and stops at LLaVA-NeXT's tiles, Pixtral's sizes or
    Idefics3's crops; `join` pads them as the families' own processors do.
    """
    chosen = samples if indices is None else [samples[i] for i in indices]
    inputs = [one for sample in chosen if (one := getattr(sample, "data", sample))]
    keys = dict.fromkeys(key for one in inputs for key in one)
    return {key: join([one[key] for one in inputs if key in one]) for key in keys}


class SharedPictures:
    """The vision tower sees each picture of a micro-batch once, however many rollouts of a group ask about it.

    `merge` before the forward pass, which then repeats the tower's output for every row that shows the picture; gradients
    of all of them add up there. For other families, and where there are videos, every row brings its own pixels.
    """

    def __init__(self, module: Any) -> None:
        visual: Any = getattr(getattr(module, "model", module), "visual", None)
        self.order: list[int] = []
        self.able = visual is not None and module.config.model_type in _SHARED
        if self.able:
            visual.register_forward_hook(self._repeat, with_kwargs=True)

    def merge(
        self, pixels: Pixels, rows: Sequence[Sequence[str]], view: View = "seen"
    ) -> list[dict[str, torch.Tensor]]:
        """The vision inputs of a micro-batch's rows, given the pictures of each; where they are shared the first row has
        those of all, each once."""
        self.order = []
        shown = [ref for refs in rows for ref in refs]
        distinct = list(dict.fromkeys(shown))
        if not self.able or len(distinct) == len(shown) or any(map(is_video, distinct)):
            return [pixels.inputs(refs, view) for refs in rows]
        self.order = [distinct.index(ref) for ref in shown]
        return [pixels.inputs(distinct, view), *({} for _ in rows[1:])]

    def _repeat(self, visual: Any, _args: Any, given: dict[str, Any], output: Any) -> Any:
        if self.order:
            sizes = (given["grid_thw"].prod(-1) // visual.spatial_merge_size**2).tolist()
            if isinstance(output, torch.Tensor):
                return self._repeated(output, sizes)
            for name in ("pooler_output", "deepstack_features"):
                if (value := output.get(name)) is not None:
                    several = isinstance(value, (list, tuple))
                    repeated = [self._repeated(one, sizes) for one in (value if several else [value])]
                    output[name] = repeated if several else repeated[0]
        return output

    def _repeated(self, features: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """features: (tokens of the distinct pictures, width) -> (tokens of all rows' pictures, width)."""
        pictures = torch.split(features, sizes)
        return torch.cat([pictures[number] for number in self.order])


class EveryRankSees:
    """A rank whose rows have no picture sends a black one through the vision tower, and adds nothing of it to the result.

    FSDP gathers weights and adds gradients up on all ranks together: one that leaves the tower out would keep the others
    waiting for ever (miles issue 2406, transformers issue 37186). verl's own forward of the Qwen and GLM families does this
    by itself; the others' forward is transformers'. Made after FSDP has wrapped the module, whose own hooks must come first:
    it gathers for the backward pass in the order in which the parts were left. `pixels` is set before the first batch.
    """

    def __init__(self, module: Any) -> None:
        self.pixels: Pixels | None = None
        self._model = getattr(module, "model", module)
        self._blind = False
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if ranks > 1 and module.config.model_type not in _SHARED and hasattr(self._model, "get_image_features"):
            self._arguments = set(inspect.signature(self._model.get_image_features).parameters)
            self._model.register_forward_pre_hook(self._look, with_kwargs=True)
            module.get_input_embeddings().register_forward_hook(self._add_nothing)

    def _look(self, _model: Any, _args: Any, given: dict[str, Any]) -> None:
        self._blind = given.get("pixel_values") is None and given.get("pixel_values_videos") is None

    def _add_nothing(self, _embedding: Any, _args: Any, embedded: torch.Tensor) -> torch.Tensor:
        """After the embedding and before the decoder, as on the other ranks: gathers must come in one order everywhere."""
        if not self._blind or self.pixels is None:
            return embedded
        self._blind = False
        shown = packed_pixels(self._model, self.pixels.black())
        black = {name: value for name, value in shown.items() if name in self._arguments}
        answer = self._model.get_image_features(**{name: value.to(embedded.device) for name, value in black.items()})
        features = getattr(answer, "pooler_output", answer)
        parts = features if isinstance(features, (list, tuple)) else [features]
        return embedded + sum(part.mean() for part in parts).to(embedded.dtype) * 0.0


def packed_pixels(module: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """`inputs` with the pixels as MiniCPM-V 4.6 takes them: side by side in the last dimension, where `Pixels` has the first."""
    if module.config.model_type != "minicpmv4_6" or "pixel_values" not in inputs:
        return inputs
    return inputs | {"pixel_values": inputs["pixel_values"].transpose(0, 3)}


def token_types(module: Any, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The argument by which Gemma 3 and 4 and PaliGemma let a picture's tokens see each other: 1 at image tokens.

    input_ids: (rows, length); the result has its shape. Empty for every other family. transformers computes it from the
    text in the processor, and verl's actor has no text.
    """
    name = _TYPE_ARGUMENTS.get(module.config.model_type)
    if name is None:
        return {}
    config = module.config
    image = config.image_token_id if hasattr(config, "image_token_id") else config.image_token_index
    return {name: (input_ids == image).long()}


_TYPE_ARGUMENTS = {"gemma3": "token_type_ids", "gemma4": "mm_token_type_ids"}


def server_weights(module: Any, parameters: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """`parameters` under the names of the checkpoint that the model was loaded from, which vLLM expects.

    transformers 5 renames on loading (conversion_mapping.py: a CLIP tower's `vision_model.` goes, for one) and on saving
    back; verl 0.9.1 (utils/model.py, `convert_weight_keys`) knows the mapping of transformers 4 only and sends the inner
    names, at which vLLM stops. Tensors are not touched: where loading also fuses or transposes, vLLM reads both layouts.
    """
    from transformers.core_model_loading import WeightConverter, rename_source_key

    conversions = getattr(module, "_weight_conversions", None) or []
    inverted = [transform.reverse_transform() for transform in reversed(conversions)]
    renamings = [transform for transform in inverted if not isinstance(transform, WeightConverter)]
    for name, tensor in parameters:
        yield rename_source_key(name, renamings, [])[0] if renamings else name, tensor
