"""The user's own code, named in the configuration: modules to import, and rewards.

A name is a module as Python imports it: of an installed package, or of a file in a folder of PYTHONPATH. Ray's workers
and Agent Lightning's runners take both from the process that starts the run.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vision_rl.errors import UserError, meant
from vision_rl.tasks import Task
from vision_rl.types import Reward

UserReward = Callable[[str, Mapping[str, Any]], "Reward | float"]
"""(reply, row with settings) -> the reward that trains, alone or with components of its own."""


def import_user_modules(names: Sequence[str]) -> None:
    """Import every module of `app.imports`, for what it registers on import, such as an advantage estimator with verl.

    Raises `UserError` naming the module that does not import.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a user's module raises
            raise UserError(
                f"app.imports: {name} cannot be imported ({type(error).__name__}: {error}); install its package or put "
                "its folder on PYTHONPATH"
            ) from error


def check_estimator(name: str) -> None:
    """Raise `UserError` unless verl knows the advantage estimator; call it after `import_user_modules`. Imports verl."""
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    if name not in ADV_ESTIMATOR_REGISTRY:
        raise UserError(
            f"algorithm.adv_estimator={name} is registered by none of app.imports; decorate its function with "
            f'verl.trainer.ppo.core_algos.register_adv_est("{name}")'
        )


def is_user_reward(name: str) -> bool:
    """Whether an `agent.reward` names a function of the user's own, as "module:function"."""
    return ":" in name


def user_reward(name: str) -> UserReward:
    """The function behind `agent.reward=module:function`. Raises `UserError` if it cannot be imported or is none."""
    try:
        function = pkgutil.resolve_name(name)
    except Exception as error:  # whatever a user's module raises
        raise UserError(
            f"agent.reward={name} cannot be imported ({type(error).__name__}: {error}); write it as module:function, and "
            "put the module's folder on PYTHONPATH"
        ) from error
    if not callable(function):
        raise UserError(f"agent.reward={name} is no function of (reply, row); write it as module:function")
    found: UserReward = function
    return found


def check_reward(task: Task, name: str) -> None:
    """Raise `UserError` for an `agent.reward` that is none of the task's and no importable function."""
    if is_user_reward(name):
        user_reward(name)
    elif name not in task.rewards:
        raise UserError(
            f"agent.reward={name} is no reward of the task {task.name}{meant(name, task.rewards)} (there are "
            f"{', '.join(task.rewards)}, or module:function for one of your own; another task's needs its --task)"
        )


def or_the_users(default: str) -> Callable[[Callable[..., Reward]], Callable[..., Reward]]:
    """Decorates the `score(task, reply, ...)` of a task: under `agent.reward=module:function` the user's reward counts.

    Beside it stand the components of the task's reward `default`, by which runs are compared; a component of the user's own
    that has a standard one's name replaces it. The decorated function raises `ValueError` for what is not finite.
    """

    def decorate(score: Callable[..., Reward]) -> Callable[..., Reward]:
        @functools.wraps(score)
        def scored(task: Mapping[str, Any], reply: str, *rest: Any, **named: Any) -> Reward:
            name = task["settings"]["reward"]
            if not is_user_reward(name):
                return score(task, reply, *rest, **named)
            standard = score({**task, "settings": {**task["settings"], "reward": default}}, reply, *rest, **named)
            own = user_reward(name)(reply, task)
            if not isinstance(own, Reward):
                own = Reward(float(own))
            return Reward(own.value, {**standard.components, **own.components})

        return scored

    return decorate
