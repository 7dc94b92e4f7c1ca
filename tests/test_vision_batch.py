"""The training batch against Hugging Face's own forward and verl's own actor: what the issue calls an actor that sees."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import einops
import pytest
import torch
import transformers.modeling_flash_attention_utils as fa
from omegaconf import OmegaConf
from PIL import Image
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations import flash_attention
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl
from verl.models.transformers import qwen2_vl
from verl.models.transformers.monkey_patch import apply_monkey_patch
from verl.utils import attention_utils

from vision_rl.engine.config import resolve
from vision_rl.engine.pixels import Pixels
from vision_rl.engine.vision_batch import BatchBuilder, Sample
from vision_rl.errors import UserError
from vision_rl.messages import image_url
from vision_rl.tiny import checkpoint_dir

REPLIES = ["red", "2", "blue square"]


def prompt_ids(processor: Any, question: str, images: list[Path]) -> list[int]:
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    encoded = processor(text=[text], images=[Image.open(path) for path in images], return_tensors="pt")
    return encoded["input_ids"][0].tolist()


@pytest.fixture()
def make_sample(tiny_processor: Any) -> Callable[..., Sample]:
    def make(images: list[str], reply: str, **changes: Any) -> Sample:
        response = [*tiny_processor.tokenizer(reply).input_ids, tiny_processor.tokenizer.eos_token_id]
        values: dict[str, Any] = {
            "prompt_ids": prompt_ids(tiny_processor, "What color is it?", [Path(path) for path in images]),
            "response_ids": response,
            "response_mask": [1] * len(response),
            "rollout_log_probs": [-1.0] * len(response),
            "image_refs": [image_url(path, "file") for path in images],
            "reward": 0.3,
            "data_id": "group",
            "rollout_id": f"rollout-{reply}",
            "turn_index": 0,
        }
        return Sample(**{**values, **changes})

    return make


@pytest.fixture()
def builder(tiny_processor: Any, tmp_path: Path) -> BatchBuilder:
    pixels = Pixels(tiny_processor, tmp_path)
    return BatchBuilder(
        tiny_processor, tiny_processor.tokenizer.pad_token_id, pixels, max_prompt_length=128, max_response_length=16
    )


@pytest.fixture()
def samples(make_sample: Callable[..., Sample], vqa_rows: list[dict[str, Any]]) -> list[Sample]:
    """Different images, replies and lengths; one conversation holds two images."""
    paths = [row["image_paths"][0] for row in vqa_rows]
    return [
        make_sample([paths[0]], REPLIES[0]),
        make_sample([paths[1]], REPLIES[1]),
        make_sample(paths[2:4], REPLIES[2]),
    ]


def reference_log_probs(model: Any, processor: Any, sample: Sample, images: list[Path]) -> torch.Tensor:
    """Log-probabilities by transformers alone: unpadded, one sample, its own positions."""
    ids = torch.tensor([sample.prompt_ids + sample.response_ids])
    vision = processor.image_processor(images=[Image.open(path).convert("RGB") for path in images], return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **vision).logits[0].log_softmax(-1)
    n = len(sample.prompt_ids)
    return torch.stack([logits[n - 1 + i, token] for i, token in enumerate(sample.response_ids)])


def actor_log_probs(model: Any, batch: Any, **changes: Any) -> torch.Tensor:
    """The same by verl's actor, from the padded batch."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.actor import DataParallelPPOActor

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    tree = OmegaConf.create(resolve("cpu", task="vqa", model=checkpoint_dir()).verl)
    config = omega_conf_to_dataclass(OmegaConf.merge(tree.actor_rollout_ref.actor, changes))
    actor = DataParallelPPOActor(config, model)
    batch.meta_info = {"micro_batch_size": 8, "temperature": 1.0, "use_dynamic_bsz": False}
    log_probs, _ = actor.compute_log_prob(batch)
    return log_probs


def test_actor_sees_what_transformers_sees(
    builder: BatchBuilder, samples: list[Sample], tiny_model: Any, tiny_processor: Any
) -> None:
    batch = builder.build(samples).batch
    computed = actor_log_probs(tiny_model, batch)
    for i, sample in enumerate(samples):
        images = [builder.pixels.path(ref) for ref in sample.image_refs]
        expected = reference_log_probs(tiny_model, tiny_processor, sample, images)
        torch.testing.assert_close(computed[i, : len(expected)], expected, atol=1e-5, rtol=0)


def varlen_attention(q: Any, k: Any, v: Any, cu_seqlens_q: Any, causal: bool, **_: Any) -> torch.Tensor:
    """What flash-attn's kernel computes: (tokens, heads, size), attention within the sequences that the offsets bound."""
    parts = []
    for start, end in pairwise(cu_seqlens_q.tolist()):
        query, key, value = (x[start:end].transpose(0, 1) for x in (q, k, v))
        parts.append(scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(0, 1))
    return torch.cat(parts)


def test_actor_sees_the_same_without_padding(
    builder: BatchBuilder, samples: list[Sample], tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verl's path where flash-attn is installed: it tells the sequences of a batch apart by the positions' zeros."""
    for module in (modeling_qwen2_vl, modeling_qwen2_5_vl):
        for name, kind in vars(module).items():
            if name.endswith(("VLAttention", "VLModel", "VLForConditionalGeneration")):
                monkeypatch.setattr(kind, "forward", kind.forward)  # put back what `apply_monkey_patch` replaces
    monkeypatch.setattr(flash_attention, "_flash_attention_forward", flash_attention._flash_attention_forward)
    monkeypatch.setattr(tiny_model.config, "model_type", "qwen2_5_vl")  # as engine/derive.py lets verl see it
    kernel = Mock(side_effect=varlen_attention)
    stand_ins = (lambda tensor, indices: tensor[indices], fa._pad_input, einops.rearrange, fa._unpad_input)
    monkeypatch.setattr(attention_utils, "_get_attention_functions", lambda: stand_ins)
    for name, value in (
        ("flash_attn_varlen_func", kernel),
        ("_flash_supports_window_size", False),
        ("_flash_supports_deterministic", False),
        ("_flash_use_top_left_mask", False),
        ("fa_peft_integration_check", lambda *states, **_: states),  # the kernel's bfloat16 would hide what is compared
    ):
        monkeypatch.setattr(qwen2_vl, name, value, raising=False)
    padded = actor_log_probs(tiny_model, builder.build(samples).batch)
    apply_monkey_patch(tiny_model, use_remove_padding=True)
    unpadded = actor_log_probs(tiny_model, builder.build(samples).batch, use_remove_padding=True)
    mask = builder.build(samples).batch.batch["response_mask"].bool()
    torch.testing.assert_close(unpadded[mask], padded[mask], atol=1e-5, rtol=0)
    assert kernel.called


@pytest.mark.parametrize("fault", ["no pixels", "swapped pixels", "plain positions"])
def test_a_blind_or_confused_actor_is_far_off(
    fault: str, builder: BatchBuilder, samples: list[Sample], tiny_model: Any
) -> None:
    """The same comparison fails by orders of magnitude when any part of the batch is wrong."""
    expected = actor_log_probs(tiny_model, builder.build(samples).batch)
    batch = builder.build(samples).batch
    if fault == "no pixels":
        del batch.non_tensor_batch["multi_modal_inputs"]
    elif fault == "swapped pixels":
        vision = batch.non_tensor_batch["multi_modal_inputs"]
        vision[0], vision[1] = vision[1], vision[0]
    else:
        text = batch.batch["position_ids"][:, :1]
        batch.batch["position_ids"] = text.expand(-1, 4, -1).contiguous()
    mask = batch.batch["response_mask"].bool()
    difference = (actor_log_probs(tiny_model, batch) - expected).abs()[mask]
    assert difference.max() > 1e-2


def test_positions_equal_transformers(builder: BatchBuilder, samples: list[Sample], tiny_model: Any) -> None:
    batch = builder.build(samples).batch.batch
    grids = [builder.pixels.inputs(sample.image_refs)["image_grid_thw"] for sample in samples]
    expected, _ = tiny_model.model.get_rope_index(
        batch["input_ids"], image_grid_thw=torch.cat(grids), attention_mask=batch["attention_mask"]
    )
    valid = batch["attention_mask"].bool()
    for i in range(len(samples)):
        assert torch.equal(batch["position_ids"][i, 1:, valid[i]], expected[:, i, valid[i]])
        assert batch["position_ids"][i, 0, valid[i]].tolist() == list(range(int(valid[i].sum())))


def test_scores_are_exact_and_at_the_last_token(builder: BatchBuilder, samples: list[Sample]) -> None:
    batch = builder.build(samples).batch.batch
    assert batch["token_level_scores"].dtype == torch.float32
    assert batch["token_level_scores"].sum(dim=-1).tolist() == pytest.approx([0.3] * 3, abs=1e-7)  # bfloat16: 0.3008
    for i, sample in enumerate(samples):
        assert batch["token_level_scores"][i, len(sample.response_ids) - 1] > 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"response_ids": [], "response_mask": [], "rollout_log_probs": []}, "empty"),
        ({"rollout_log_probs": []}, "no_logprobs"),
        ({"image_refs": []}, "image_tokens_disagree"),
        ({"image_refs": ["file:///nowhere/to/be/found.png"]}, "unreadable_image"),
    ],
)
def test_bad_samples_are_dropped_and_counted(
    changes: dict[str, Any], reason: str, builder: BatchBuilder, make_sample: Callable[..., Sample], vqa_rows: list[Any]
) -> None:
    image = vqa_rows[0]["image_paths"]
    built = builder.build([make_sample(image, "red"), make_sample(image, "blue", **changes)])
    assert dict(built.dropped) == {reason: 1}
    assert len(built.batch) == 1


def test_wrong_number_of_image_tokens_is_dropped(
    builder: BatchBuilder, make_sample: Callable[..., Sample], vqa_rows: list[Any], tiny_processor: Any
) -> None:
    good = make_sample(vqa_rows[0]["image_paths"], "red")
    ids = list(good.prompt_ids)
    ids.remove(tiny_processor.image_token_id)
    built = builder.build([good, make_sample(vqa_rows[0]["image_paths"], "blue", prompt_ids=ids)])
    assert dict(built.dropped) == {"image_tokens_disagree": 1}


def test_a_prompt_is_never_cut_through_its_image(
    builder: BatchBuilder, make_sample: Callable[..., Sample], vqa_rows: list[Any]
) -> None:
    image = vqa_rows[0]["image_paths"]
    long = make_sample(image, "red")
    builder.max_prompt_length = len(long.prompt_ids) - 1
    with pytest.raises(UserError, match="prompt_too_long"):
        builder.build([long])


def test_long_responses_are_cut_and_counted(
    builder: BatchBuilder, make_sample: Callable[..., Sample], vqa_rows: list[Any]
) -> None:
    builder.max_response_length = 1
    built = builder.build([make_sample(vqa_rows[0]["image_paths"], "blue square")])
    assert built.truncated_responses == 1
    assert built.batch.batch["responses"].shape[-1] == 1


def test_an_image_is_processed_once_for_its_group(
    builder: BatchBuilder, make_sample: Callable[..., Sample], vqa_rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [make_sample(vqa_rows[0]["image_paths"], reply) for reply in REPLIES]
    calls: list[int] = []
    processor = builder.pixels.processor.image_processor
    original = type(processor).__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(processor), "__call__", counted)
    builder.build(samples)
    assert len(calls) == 1


def test_blank_pixels_keep_the_shape(tiny_processor: Any, tmp_path: Path, vqa_rows: list[Any]) -> None:
    ref = [image_url(vqa_rows[0]["image_paths"][0], "file")]
    seeing = Pixels(tiny_processor, tmp_path).inputs(ref)
    blind = Pixels(tiny_processor, tmp_path, blank=True).inputs(ref)
    assert blind["pixel_values"].shape == seeing["pixel_values"].shape
    assert not blind["pixel_values"].any()
    assert seeing["pixel_values"].any()
    assert torch.equal(blind["image_grid_thw"], seeing["image_grid_thw"])
