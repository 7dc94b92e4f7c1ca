"""PAPO's loss against the formula written out with transformers alone, values and gradients; and what a masked picture is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.utils.losses import ppo_loss

from tests.actor import actor
from tests.test_rows import builder, make_sample, rows_of  # noqa: F401  (fixtures)
from vision_rl.actor.papo import papo_loss
from vision_rl.config.resolve import resolve
from vision_rl.models.pixels import MASKED_PATCH, Pixels
from vision_rl.settings import Papo
from vision_rl.tiny import checkpoint_dir
from vision_rl.training.rows import RowBuilder
from vision_rl.training.samples import Sample

PAPO = Papo(kl_coef=0.5, entropy_coef=0.25, mask_ratio=0.6)  # weights at which no term is lost in rounding
TEMPERATURE = 4.0  # brings every token near the others, where verl bounds no term (10 nats, core_algos.kl_penalty)
WEIGHT = "model.language_model.layers.0.mlp.up_proj.weight"


def picture(folder: Path, size: tuple[int, int]) -> Path:
    values = np.random.default_rng(1).integers(1, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / "p.png")
    return folder / "p.png"


def test_a_masked_picture_lacks_whole_squares_that_are_drawn_anew(tiny_processor: Any, tmp_path: Path) -> None:
    pixels = Pixels(tiny_processor, tmp_path, masked=0.6)
    whole = Image.open(picture(tmp_path, (20 * MASKED_PATCH + 3, 10 * MASKED_PATCH)))
    masked = np.asarray(pixels._without_squares(whole, 7))
    gone = (masked == 0).all(axis=-1)
    assert (masked[~gone] == np.asarray(whole)[~gone]).all()
    squares = gone[:, : 20 * MASKED_PATCH].reshape(10, MASKED_PATCH, 20, MASKED_PATCH).mean(axis=(1, 3))
    assert set(np.unique(squares)) == {0.0, 1.0} and 0.45 < squares.mean() < 0.75
    assert (np.asarray(pixels._without_squares(whole, 7)) == masked).all()
    pixels.draw()
    assert (np.asarray(pixels._without_squares(whole, 7)) != masked).any()


def test_squares_grow_with_a_picture_that_the_model_makes_smaller(tiny_processor: Any, tmp_path: Path) -> None:
    """Else they would be averaged away, and the whole picture be merely darker."""
    whole = Image.open(picture(tmp_path, (160, 160)))
    pixels = Pixels(tiny_processor, tmp_path, limits={"max_pixels": 40 * 40}, masked=0.5)
    gone = (np.asarray(pixels._without_squares(whole, 7)) == 0).all(axis=-1)
    side = 4 * MASKED_PATCH
    squares = [gone[y : y + side, x : x + side].mean() for y in range(0, 160, side) for x in range(0, 160, side)]
    assert set(squares) == {0.0, 1.0}


@pytest.fixture
def samples(make_sample: Callable[..., Sample], vqa_rows: list[dict[str, Any]], tmp_path: Path) -> list[Sample]:  # noqa: F811
    """Pictures by their hashes: a masked picture's squares follow from its reference, and a temporary path is never the same."""
    paths = [row["image_paths"][0] for row in vqa_rows]
    found = [make_sample([paths[0]], "red"), make_sample(paths[1:3], "blue square"), make_sample([], "2")]
    for sample, pictures in zip(found, (paths[:1], paths[1:3], []), strict=True):
        for i, path in enumerate(pictures):
            content = Path(path).read_bytes()
            name = hashlib.sha256(content).hexdigest()
            (tmp_path / name).write_bytes(content)
            sample.image_refs[i] = f"sha256:{name}"
    return found


def micro_batch(rows: list[dict[str, Any]], advantages: list[float]) -> Any:
    data = list_of_dict_to_tensordict([dict(row) for row in rows])
    for name in list(data.keys()):
        if isinstance(data[name], torch.Tensor) and not data[name].is_nested:
            data[name] = torch.nested.as_nested_tensor(list(data[name]), layout=torch.jagged)
    tu.maybe_fix_3d_position_ids(data)
    lengths = [len(row["responses"]) for row in rows]
    nested = partial(torch.nested.as_nested_tensor, layout=torch.jagged)
    data["advantages"] = nested([torch.full((n,), a) for n, a in zip(lengths, advantages, strict=True)])
    data["old_log_probs"] = nested([row["rollout_log_probs"] for row in rows])
    tu.assign_non_tensor(
        data, calculate_entropy=True, use_remove_padding=False, temperature=TEMPERATURE,
        dp_size=1, batch_num_tokens=sum(lengths), global_batch_size=len(rows),
    )  # fmt: skip
    return data


def reference(model: Any, pixels: Pixels, samples: list[Sample], advantages: list[float]) -> torch.Tensor:
    """The mean over all tokens of -A pi/pi_old (unclipped) - gamma k3 + eta (H + H_mask), the latter where there are pictures."""
    terms = []
    for sample, advantage in zip(samples, advantages, strict=True):
        ids = torch.tensor([sample.prompt_ids + sample.response_ids])
        chosen = ids[0, len(sample.prompt_ids) :]
        found = []
        for view in ("seen", "masked"):
            inputs = pixels.inputs(sample.image_refs, view)  # type: ignore[arg-type]
            if inputs:
                inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0] / TEMPERATURE
            spread = logits[len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
            found.append((spread.gather(-1, chosen[:, None])[:, 0], -(spread.exp() * spread).sum(-1)))
        (seen, entropy), (hidden, hidden_entropy) = found
        loss = -advantage * (seen - torch.tensor(sample.rollout_log_probs)).exp()
        if sample.image_refs:
            assert (hidden - seen).abs().max() < 2.5, "verl bounds the term at 10 nats, and the formula does not"
            loss = loss - PAPO.kl_coef * ((hidden - seen).exp() - (hidden - seen) - 1)
            loss = loss + PAPO.entropy_coef * (entropy + hidden_entropy)
        terms.append(loss)
    return torch.cat(terms).mean()


def test_loss_and_gradient_are_those_of_the_formula(
    builder: RowBuilder,  # noqa: F811
    samples: list[Sample],
    tiny_dir: Path,
) -> None:
    from transformers import AutoModelForImageTextToText

    plain = AutoModelForImageTextToText.from_pretrained(tiny_dir, dtype=torch.float32, attn_implementation="sdpa")
    pixels = builder.pixels
    pixels.masked = PAPO.mask_ratio
    advantages = [1.0, -0.5, 0.25]
    expected = reference(plain, pixels, samples, advantages)
    expected.backward()
    gradient = dict(plain.named_parameters())[WEIGHT].grad

    tree = resolve("cpu", task="vqa", model=str(checkpoint_dir()), variants=["papo"], overrides=WIDE).verl
    config = omega_conf_to_dataclass(_tree(tree).actor_rollout_ref.actor)
    engine = actor().engine
    engine.pixels = pixels
    engine.papo = partial(papo_loss, papo=PAPO, config=config)
    engine.module.train()
    loss, output = engine.forward_step(
        micro_batch(rows_of(builder, samples), advantages), partial(ppo_loss, config=config), forward_only=False
    )
    loss.backward()
    named = {name: weight for name, weight in engine.module.named_parameters() if name.endswith(WEIGHT)}
    (weight,) = named.values()
    computed = weight.grad.full_tensor() if hasattr(weight.grad, "full_tensor") else weight.grad
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert gradient is not None and computed is not None
    torch.testing.assert_close(computed, gradient, atol=1e-5, rtol=1e-3)
    assert output["metrics"]["papo/kl_prcp"].values[0] > 0


WIDE = [
    "actor_rollout_ref.actor.loss_agg_mode=token-mean",  # nothing is clipped, so that the reference needs no clip
    *(f"actor_rollout_ref.actor.clip_ratio_{name}=100000" for name in ("low", "high", "c")),
]


def _tree(verl: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.create(verl)
