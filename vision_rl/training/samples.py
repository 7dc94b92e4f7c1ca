"""Turn finished rollouts into sequences: each turn alone, or a rollout's turns joined where they continue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vision_rl.rollout.trace import Turn
from vision_rl.tasks import TURN_REWARD
from vision_rl.training.rollouts import FinishedRollout


@dataclass(frozen=True)
class Sample:
    """One sequence to train on: the prompt, then response tokens of which `response_mask` marks the model's own.

    `rollout_log_probs` holds one value per response token (0 where the mask is 0). `data_id` names the group,
    `rollout_id` the rollout; a rollout of several turns may give several samples, all with the rollout's one reward.
    `temperature` is what its requests asked for, None for the run's.
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
    placed: tuple[tuple[int, float], ...] = ()
    """Parts of the reward that an environment gave at a turn: (the turn's last response token, how much)."""
    temperature: float | None = None


def transition_samples(rollouts: Iterable[FinishedRollout]) -> list[Sample]:
    """Every turn of every usable rollout as a sample of its own ("transition" level of Agent Lightning)."""
    return [
        Sample(
            prompt_ids=turn.prompt_ids,
            response_ids=turn.response_ids,
            response_mask=[1] * len(turn.response_ids),
            rollout_log_probs=turn.logprobs,
            image_refs=turn.image_refs,
            reward=rollout.reward["reward"],
            data_id=rollout.data_id,
            rollout_id=rollout.rollout_id,
            turn_index=index,
            temperature=turn.sampling.get("temperature"),
        )
        for rollout in rollouts
        if not rollout.failure
        for index, turn in enumerate(rollout.turns)
    ]


@dataclass
class Merged:
    """Samples of the "trajectory" level. breaks: how often two turns of a rollout could not be joined, by reason."""

    samples: list[Sample] = field(default_factory=list)
    breaks: Counter[str] = field(default_factory=Counter)


def trajectory_samples(
    rollouts: Iterable[FinishedRollout], *, max_prompt_length: int, max_response_length: int
) -> Merged:
    """Every usable rollout as one sample: the first turn's prompt, then all that followed, the model's tokens marked.

    A turn joins the one before it if its prompt begins with that turn's prompt and response, token by token, and its
    pictures with that turn's pictures. Where a template has tokenised earlier turns anew, the whole would be longer than
    the limits, or another temperature was asked for, the turn starts a sample of its own, as at the "transition" level, and
    the break is counted: "tokens", "pictures", "length" or "temperature". Agent Lightning 0.3.0 refuses this level for
    M-RoPE models (agentlightning/verl/daemon.py:916); positions and pixels are exact here because the last turn of a sample
    holds its whole sequence and all its pictures.
    """
    merged = Merged()
    for rollout in rollouts:
        if rollout.failure:
            continue
        chains: list[list[Turn]] = []
        for turn in rollout.turns:
            reason = _break(chains[-1], turn, max_prompt_length, max_response_length) if chains else "first"
            if reason:
                chains.append([turn])
                merged.breaks[reason] += reason != "first"
            else:
                chains[-1].append(turn)
        started = 0
        for chain in chains:
            merged.samples.append(_chain_sample(rollout, chain, started))
            started += len(chain)
    merged.breaks = +merged.breaks
    return merged


def _break(chain: Sequence[Turn], turn: Turn, max_prompt_length: int, max_response_length: int) -> str:
    """Why `turn` cannot follow the chain in one sample, "" if it can."""
    context = chain[-1].prompt_ids + chain[-1].response_ids
    if turn.prompt_ids[: len(context)] != context:
        return "tokens"
    if turn.image_refs[: len(chain[-1].image_refs)] != chain[-1].image_refs:
        return "pictures"
    if turn.sampling.get("temperature") != chain[-1].sampling.get("temperature"):
        return "temperature"
    prompt = len(chain[0].prompt_ids)
    if prompt > max_prompt_length or len(turn.prompt_ids) + len(turn.response_ids) - prompt > max_response_length:
        return "length"
    return ""


def _chain_sample(rollout: FinishedRollout, chain: Sequence[Turn], turn_index: int) -> Sample:
    """One sample of turns that continue each other; every token that the model did not sample is masked."""
    response: list[int] = []
    mask: list[int] = []
    log_probs: list[float] = []
    placed: list[tuple[int, float]] = []
    start = len(chain[0].prompt_ids)
    for number, turn in enumerate(chain, start=turn_index + 1):
        given = turn.prompt_ids[start + len(response) :]
        response += given + turn.response_ids
        mask += [0] * len(given) + [1] * len(turn.response_ids)
        log_probs += [0.0] * len(given) + turn.logprobs
        if turn.response_ids and (earned := rollout.reward.get(f"{TURN_REWARD}{number}")):
            placed.append((len(response) - 1, earned))
    return Sample(
        prompt_ids=chain[0].prompt_ids,
        response_ids=response,
        response_mask=mask,
        rollout_log_probs=log_probs,
        image_refs=chain[-1].image_refs,
        reward=rollout.reward["reward"],
        data_id=rollout.data_id,
        rollout_id=rollout.rollout_id,
        turn_index=turn_index,
        placed=tuple(placed) if len(chain) == len(rollout.turns) else (),
        temperature=chain[0].sampling.get("temperature"),
    )
