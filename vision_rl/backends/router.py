"""A router that routes nothing, in place of verl's load balancer.

verl starts an actor that tells its own agent loops which model server to ask (workers/rollout/router.py). Here the LLM proxy
does that, and nobody asks. verl's class would import verl, torch and transformers, some seven seconds of a core, while the
first rollouts begin. This module imports nothing, and must not.
"""


class NoRouter:
    """Takes what verl hands to a router that `router.yaml` names."""

    def __init__(self, servers: object, config: object) -> None: ...
