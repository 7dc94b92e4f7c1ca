"""What a traced call's own fields do to the distribution that the model server samples from, and what of it can be trained on.

The server returns the log-probabilities of the distribution that it sampled from; the actor computes its own. They are of one
policy only where the actor can do what the request asked for. It divides each row's logits by that row's temperature
(`actor/rank.py`). A nucleus, a penalty, a bias or a grammar would have to be known for every token of every reply: vLLM
does not say which tokens it left out, and a policy gradient of the whole distribution over samples of a part of it is biased.
Such a field is refused in a training rollout's call, whatever the run's limit on |actor - rollout|, and served in all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LEAST_TEMPERATURE = 0.01
"""vLLM takes less for this (sampling_params.py, `_MAX_TEMP`), and 0 for greedy."""
_RECORDED = ("stop", "stop_token_ids", "ignore_eos", "seed")
"""Fields beside those below that are kept with a call: they choose where a reply ends, or which sample it is."""
_CHANGES: dict[str, Callable[[Any], bool]] = {
    "temperature": lambda value: value < LEAST_TEMPERATURE,
    "top_p": lambda value: value != 1,
    "top_k": lambda value: value not in (-1, 0),
    "min_p": lambda value: value != 0,
    "frequency_penalty": lambda value: value != 0,
    "presence_penalty": lambda value: value != 0,
    "repetition_penalty": lambda value: value != 1,
    "logit_bias": bool,
    "min_tokens": lambda value: value != 0,
    "response_format": lambda value: value["type"] != "text",
    "tool_choice": lambda value: value not in ("auto", "none"),
}
"""Fields by which a request changes the distribution, and whether a value does so in a way that the actor cannot follow."""


def asked_sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a request asks of the sampling, without what changes nothing; kept with the call."""
    return {
        name: value
        for name, value in body.items()
        if name == "temperature" or name in _RECORDED or (name in _CHANGES and _CHANGES[name](value))
    }


def untrainable(body: Mapping[str, Any]) -> str:
    """Why a request cannot be trained on, in a sentence that names the field and the way out; "" if it can."""
    for name, changes in _CHANGES.items():
        if name in body and changes(body[name]):
            value = body[name]
            said = value if isinstance(value, int | float | str) else value.get("type", "...")
            why = (
                "a greedy reply has no distribution to learn"
                if name == "temperature"
                else "the actor cannot compute the log-probabilities of what is left of the distribution"
            )
            form = name in ("response_format", "tool_choice")
            other = ", or set agent.structured_output=prompt" if form else "; validation and evaluation may have it"
            return (
                f"{name}={said} cannot be trained on: {why}. Leave {name} out of a training rollout's calls{other} "
                "(docs/workers.md)"
            )
    return ""
