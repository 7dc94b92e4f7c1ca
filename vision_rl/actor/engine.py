"""verl's FSDP engine with pictures by reference, the server's banned tokens, a frozen vision tower, and support for CPUs.

Registered with verl's `EngineRegistry` for "cpu", and for "cuda" by the vendor's name, which goes before verl's own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import verl.utils.torch_functional as torch_functional
import verl.workers.engine.fsdp.transformer_impl as fsdp_engine
from tensordict.tensorclass import NonTensorData, NonTensorStack
from verl.utils import tensordict_utils as tu
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from vision_rl.actor import shared_prompt
from vision_rl.actor.model_patches import (
    VISION_TOWERS,
    EveryRankSees,
    SharedPictures,
    mend,
    merge_pictures,
    packed_pixels,
    server_weights,
    token_types,
)
from vision_rl.errors import UserError
from vision_rl.models.chat_templates import check_template_names
from vision_rl.models.pixels import Pixels, View
from vision_rl.serving.banned_tokens import BANNED_LOGIT

BLOCK = 1024
"""Tokens whose logits are in memory twice at a time."""
_verls_micro_batches = fsdp_engine.prepare_micro_batches
_verls_log_probs = fsdp_engine.logprobs_from_logits


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
@EngineRegistry.register(
    model_type="language_model", backend=["fsdp", "fsdp2"], device="cuda", vendor=["nvidia", "amd"]
)
class VisionEngine(FSDPEngineWithLMHead):
    """`FSDPEngineWithLMHead` for models that see.

    The worker sets `freezes_tower` before the model is built, `pixels`, `banned_tokens` and `on_policy` before the first
    batch, and `papo`, a loss that takes what the model says of masked pictures too, for a run with it.
    """

    freezes_tower = False
    shares_prompts = True
    """Whether a group's prompt is computed once, where the model allows it (`vision_rl.actor.shared_prompt`)."""
    unshared = "the model is not built"
    pixels: Pixels | None = None
    papo: Any = None
    banned_tokens: torch.Tensor | None = None
    on_policy: Any = None
    every_rank_sees: EveryRankSees | None = None
    _watched = _with_reference = False
    _kept: torch.Tensor | None = None

    def _build_module(self) -> Any:
        module = super()._build_module()
        self.pictures = SharedPictures(module)
        mend(module)
        if self.freezes_tower:
            freeze_vision_tower(module)
        padding = "padding is removed (model.use_remove_padding)" if self.use_remove_padding else ""
        self.unshared = padding or shared_prompt.why_not(module.config)
        if not self.unshared:
            shared_prompt.use_shared_attention(module)
        module.get_output_embeddings().register_forward_pre_hook(self._select)
        module.get_output_embeddings().register_forward_hook(self._ban)
        return module

    def _build_lora_module(self, module: Any) -> Any:
        """As upstream, with adapters in float32: verl casts them to the base's dtype (transformer_impl.py:378), and a bfloat16
        weight does not take an update smaller than 1/256 of it. FSDP2 allows frozen weights of another dtype."""
        module = super()._build_lora_module(module)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return module

    def _build_fsdp_module(self, module: Any) -> Any:
        wrapped = super()._build_fsdp_module(module)
        self.every_rank_sees = EveryRankSees(module.get_base_model() if hasattr(module, "get_base_model") else module)
        return wrapped

    def _select(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """Compute logits of a shared micro-batch for the model's own tokens alone: (1, length, width) -> (1, tokens, width)."""
        return None if self._kept is None else (inputs[0][:, self._kept], *inputs[1:])

    def _ban(self, _module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        """Take the tokens out that verl's server never samples (monkey_patch_compute_logits: placeholders of pictures, and
        ids beyond the tokenizer): else the actor's log-probabilities are off by log(1 - p(banned)).

        logits: (..., vocabulary). Finite, and far from the dtype's limit: they are divided by the temperature after this, and
        entropy multiplies them with probabilities of zero, so that an infinity would make the loss NaN.
        """
        if self.banned_tokens is None or not len(self.banned_tokens):
            return logits
        banned = self.banned_tokens.to(logits.device)
        return logits.index_fill(-1, banned, BANNED_LOGIT)

    def prepare_model_inputs(self, micro_batch: Any) -> Any:
        """As upstream, with the pixels of this micro-batch in place of the references that came through the queue.

        Its entry "view" says how they are shown: as they are, unless the sight gauge or PAPO asks otherwise.
        """
        if self.every_rank_sees is not None:
            self.every_rank_sees.pixels = self.pixels
        inputs = micro_batch.get("multi_modal_inputs", None)
        refs = [picture_refs(one) for one in inputs] if inputs is not None else [[] for _ in range(len(micro_batch))]
        view = tu.get_non_tensor_data(micro_batch, "view", default="seen")
        mend_positions(micro_batch)
        packed = self._packed(micro_batch, refs)
        self._kept = None if packed is None else packed.kept
        if packed is not None:
            pictures = merge_pictures(self._opened(packed.refs, view))
            return packed.inputs | packed_pixels(self.module, pictures) | token_types(
                self.module, packed.inputs["input_ids"]
            ), {"packed": packed}
        if inputs is not None:
            opened = self._opened(refs, view)
            micro_batch.set("multi_modal_inputs", NonTensorStack(*map(NonTensorData, opened)))
        model_inputs, output_args = super().prepare_model_inputs(micro_batch)
        shown = packed_pixels(self.module, model_inputs)
        return shown | token_types(self.module, model_inputs["input_ids"]), output_args

    def _packed(self, micro_batch: Any, refs: list[list[str]]) -> shared_prompt.Packed | None:
        """The micro-batch with each group's prompt once, where this model can and it saves enough."""
        if (
            not self.shares_prompts
            or self.unshared
            or tu.get_non_tensor_data(micro_batch, "use_fused_kernels", default=False)
        ):
            return None
        return shared_prompt.pack(micro_batch, refs, self.pixels)

    def prepare_model_outputs(self, output: Any, output_args: Any, micro_batch: Any, logits_processor_func: Any) -> Any:
        """As upstream; of a shared micro-batch for the model's own tokens, zero elsewhere."""
        packed = output_args.get("packed")
        if packed is None:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        logits = output.logits.squeeze(0)  # (tokens, vocabulary)
        temperature = micro_batch["temperature"]
        if isinstance(temperature, torch.Tensor):  # of each row
            logits = logits / temperature.to(logits)[packed.row, None].clamp(min=1e-8)
        elif temperature != 1:
            logits = logits / temperature
        asked = partial(tu.get_non_tensor_data, micro_batch, default=False)
        entropy = asked("calculate_entropy")
        values = {"log_probs": fsdp_engine.logprobs_from_logits(logits, packed.labels, inplace_backward=not entropy)}
        if entropy:
            values["entropy"] = self._entropy(logits)
        if asked("calculate_sum_pi_squared"):
            values["sum_pi_squared"] = torch_functional.calculate_sum_pi_squared_from_logits(logits)
        return {name: packed.nested(one, micro_batch) for name, one in values.items()}

    def _entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """(tokens, vocabulary) -> (tokens,), by verl's settings."""
        config = self.engine_config
        compute = self.compute_entropy_from_logits
        if config.entropy_checkpointing:
            return torch.utils.checkpoint.checkpoint(compute, logits, use_reentrant=False)
        if config.entropy_from_logits_with_chunking:
            return compute(logits, chunk_size=config.entropy_from_logits_chunk_size)
        return compute(logits)

    def forward_backward_batch(self, data: Any, loss_function: Any, forward_only: bool = False) -> Any:
        """As upstream; micro-batches by tokens keep groups together and count a shared prompt once."""
        if self.shares_prompts and not self.unshared and "multi_modal_inputs" in data:
            refs = [picture_refs(one) for one in data["multi_modal_inputs"]]
            tu.assign_non_tensor(data, split=partial(shared_prompt.micro_batches, refs=refs, pixels=self.pixels))
        return super().forward_backward_batch(data, loss_function, forward_only)

    def forward_step(self, micro_batch: Any, loss_function: Any, forward_only: bool) -> Any:
        """As upstream; an update without `old_log_probs` takes its own, and one with PAPO's terms comes after a forward pass of
        the same rows with masked pictures."""
        if self.on_policy is not None and not forward_only:
            loss_function = self.on_policy.over(micro_batch, loss_function)
        if self.papo is None or forward_only:
            return super().forward_step(micro_batch, loss_function, forward_only)
        masked: dict[str, torch.Tensor] = {}

        def keep(model_output: dict[str, torch.Tensor], **_: Any) -> tuple[torch.Tensor, dict[str, Any]]:
            masked.update(model_output)
            return torch.zeros(()), {}

        hidden = micro_batch.copy()  # upstream puts the pixels in place of their names
        tu.assign_non_tensor(hidden, view="masked")
        super().forward_step(hidden, keep, forward_only)
        seeing = torch.tensor([bool(picture_refs(one)) for one in micro_batch["multi_modal_inputs"]])
        loss = partial(self.papo, inner=loss_function, masked=masked, seeing=seeing)
        return super().forward_step(micro_batch, loss, forward_only)

    def train_batch(self, data: Any, loss_function: Any) -> Any:
        """As upstream; a batch without `old_log_probs` also tells how far its rollouts are from the policy before the update."""
        self._watched = self.on_policy is not None and "old_log_probs" not in data
        self._with_reference = "ref_log_prob" in data
        output = super().train_batch(data, loss_function)
        if self._watched:
            # in a list, as what every micro-batch adds to: verl joins those of the mini-batches and ranks
            output["metrics"].update({name: [value] for name, value in self.on_policy.metrics.items()})
        return output

    def optimizer_step(self) -> float:
        """As upstream, unless actor and rollout are too far apart: then nothing is learnt, and the trainer ends the run."""
        group = self.get_data_parallel_group()
        if self._watched and not self.on_policy.may_update(group, with_reference=self._with_reference):
            self.optimizer_zero_grad()
            return 0.0
        return float(super().optimizer_step())

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As upstream, which also saves the processor or tokenizer: that of `model.tokenizer_path`, where one is set."""
        check_template_names(self.model_config.get_processor(), self.model_config.tokenizer_path)
        super().save_checkpoint(*args, **kwargs)

    def get_per_tensor_param(self, *args: Any, **kwargs: Any) -> Any:
        """As upstream, under the names that the model server knows."""
        parameters, peft_config = super().get_per_tensor_param(*args, **kwargs)
        return server_weights(self.module, parameters), peft_config

    def _opened(self, rows: list[list[str]], view: View) -> list[dict[str, torch.Tensor]]:
        """Pixels and grids of a micro-batch's rows, given the pictures of each."""
        if self.pixels is None:
            if any(rows):
                raise UserError("the actor does not know where the run's pictures are")
            return [{} for _ in rows]
        return self.pictures.merge(self.pixels, rows, view)


def picture_refs(inputs: Any) -> list[str]:
    """The pictures of one sample, from what `training/rows.py` queued: {"refs": [...]} or nothing.

    Raises `UserError` for a row that brings pixels, as verl's own agent loop queues it: they would be dropped in silence.
    """
    inputs = getattr(inputs, "data", inputs)
    if not inputs:
        return []
    if "refs" not in inputs:
        raise UserError(
            f"a row brings {', '.join(map(repr, inputs))} in multi_modal_inputs, not the names of its pictures "
            '({"refs": [...]}): this actor opens pictures itself and would leave these out'
        )
    return list(inputs["refs"] or [])


def micro_batches(data: Any, **options: Any) -> Any:
    """verl's `prepare_micro_batches`, by the batch's own way of splitting it by tokens where it brings one."""
    split = tu.pop(data, key="split", default=None)
    if split is None or not tu.get_non_tensor_data(data, "use_dynamic_bsz", default=True):
        return _verls_micro_batches(data=data, **options)
    most = data["max_token_len_per_gpu"] * tu.get_non_tensor_data(data, "sp_size", default=1)
    return split(data, most=most, **options)


def log_probs_by_block(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    """The log-probability of each label; logits: (tokens, vocabulary), labels: (tokens,).

    verl's own function, which without flash-attn goes over its first dimension in a Python loop to save memory
    (utils/torch_functional.py:197), and `prepare_model_outputs` gives it tokens there: forty times the time of a block.
    """
    blocks = zip(logits.split(BLOCK), labels.split(BLOCK), strict=True)
    return torch.cat([_verls_log_probs(block[None], ids[None], **options)[0] for block, ids in blocks])


def mend_positions(data: Any) -> None:
    """Make M-RoPE positions, (rows, 4, length), ragged in the length, in place. Call it before rows are selected.

    Where all rows are equally long, `as_nested_tensor` takes the 4 for the ragged dimension, and verl 0.9.1 then declares
    it to be the last one (utils/tensordict_utils.py, `maybe_fix_3d_position_ids`): the update would be computed at
    wrong positions, in silence.
    """
    positions = data["position_ids"]
    if positions.dim() != 3:
        return
    values = positions.values()
    if values.shape[0] != 4:  # (rows * 4, length)
        values = values.unflatten(0, (-1, 4)).transpose(0, 1).flatten(1)
    ragged = torch.nested.nested_tensor_from_jagged(values, data["input_ids"].offsets(), jagged_dim=2)
    data.set("position_ids", ragged)  # `data[...] =` would write into the old tensor, whose offsets differ


def freeze_vision_tower(module: Any) -> int:
    """Take the part that sees out of the update; returns how many tensors were frozen. Raises `UserError` if there is none.

    verl 0.9.1 keeps the key `actor.freeze_vision_tower`, but no FSDP code reads it any more.
    """
    frozen = 0
    for name, parameter in module.named_parameters():
        if any(part in VISION_TOWERS for part in name.split(".")):
            parameter.requires_grad_(False)
            frozen += 1
    if not frozen:
        raise UserError(
            f"freeze_vision_tower=true, but {type(module).__name__} has no part named {', '.join(VISION_TOWERS)}"
        )
    return frozen
