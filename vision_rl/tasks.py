"""The table of tasks: whatever tells one task from another is a field of its row.

A task outside this repository is a file with a `TASK` in it (`--task path/to/my_task.py`), or an installed package
that names its row under the entry point group `vision_rl.tasks`. docs/add-a-task.md builds one.

A field that holds code may hold it as "module:attribute" instead, which is imported when it is first asked for: to look
up a task's name or its default reward costs no import of its agent.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_rl.errors import UserError, meant
from vision_rl.types import LLM, Record, Reward, Row

if TYPE_CHECKING:
    import random

    from PIL import Image

    from vision_rl.answers.boxes import Box
    from vision_rl.settings import AgentSettings

ENTRY_POINTS = "vision_rl.tasks"
TASK_HELP = "vqa, grounding, an installed task's name, or path/to/my_task.py"
TRUTHS = ("answers", "boxes", "environment")
"""What says what is right: a column of the row, with accepted texts or boxes in unit space; or the task's environment."""

EXAMPLES = Path(__file__).parents[1] / "examples"
"""In a checkout, the tasks in folders there (`NAME/task.py`) are known by their names."""
TURN_REWARD = "turn_reward/"
"""Prefix of the components that hold what an environment gave at each turn, counted from 1, where the turns are to have it."""
_REFERENCE = re.compile(r"[\w.]+:\w+")


@dataclass(frozen=True)
class Task:
    """One row of the table. Only `name` and `answer` must be given; the defaults suit tasks with short answers.

    The first block trains, the second checks data, the third sums up results.
    """

    name: str
    """What `--task`, the `task` column of data files and the run's configuration call it."""
    answer: Callable[[dict[str, Any], LLM], Awaitable[tuple[str, Reward]]] | str = ""
    """Asks the model about a row and scores its last reply. Workers, evaluation and baselines call it, and so does the agent."""
    agent: Callable[..., Any] | None = None
    """The `@agl.rollout` agent, which emits one reward; Agent Lightning's runners call it. None: one made of `answer`."""
    truth: str = "answers"
    """One of `TRUTHS`; the other column must be empty in rows of this task."""
    rewards: tuple[str, ...] = ("default",)
    """What `agent.reward` may be, beside a function of the user's own ("module:function"); the first is the default."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Settings (dotted keys) that this task sets before the preset does."""
    environment: Any = None
    """A `vision_rl.agent.environment.Environments`, in place of `answer` and `truth`: the loop and the score are its own."""
    prompt: str = ""
    """The user's text, as a template: what a question becomes."""

    score: Callable[[Row, str], Reward] | str | None = None
    """(row with settings, reply) -> the reward that trains, where no conversation is needed to know it."""
    gold: Callable[[Row], tuple[str, float]] | str | None = None
    """(row with settings) -> the reply of a perfect model and the score that it must reach; `verify` asks `score`."""
    synthetic: Callable[[random.Random], tuple[Image.Image, dict[str, Any]]] | str | None = None
    """Draws one made-up picture and the fields of its row: the data of a run without --data-path. None: there is none."""

    metric: str = "accuracy"
    """The component of the reward that validation is judged by, whatever the reward of training is."""
    hit: str = ""
    """The component that says, as 0 to 1, whether a reply is right; confidences are held against it. "": `metric`."""
    measures: Mapping[str, Callable[[Record], float]] | str = field(default_factory=dict)
    """Figures of an evaluation by name. Empty: the metric, the reward, and the share of well-formed replies."""
    headline: tuple[str, ...] = ()
    """The measures that breakdowns show, the leading one first. Empty: the metric."""
    breakdowns: Callable[[Record], list[tuple[str, str]]] | str | None = None
    """The tables that a record counts in, as (breakdown, value) pairs."""
    submission: Callable[[Sequence[Record]], Any] | str | None = None
    """The result file that the task's official server takes, as JSON; None for records that it would not take."""
    drawing: Callable[[Record, AgentSettings, tuple[int, int]], list[Box]] | str | None = None
    """(record, settings, (width, height) of its first picture) -> predicted boxes in unit space, drawn over the picture."""

    source: str = ""
    """The file that the task was loaded from; "" for a built-in or an installed one. Filled in on loading."""

    def __post_init__(self) -> None:
        if self.environment is not None:
            own = {"answer": self.environment.play, "truth": "environment"}
            if self.metric == type(self).metric:
                own["metric"] = "success"
            for name, value in own.items():
                object.__setattr__(self, name, value)
        if not self.answer:
            raise UserError(f"task {self.name!r} has no agent; give `answer` or `environment`")
        if self.truth not in TRUTHS:
            raise UserError(f"task {self.name!r} has truth={self.truth!r}; choose one of {', '.join(TRUTHS)}")
        if not self.rewards:
            raise UserError(f"task {self.name!r} has no reward; name at least one in `rewards`")

    def part(self, name: str) -> Any:
        """The field of that name, imported if it is "module:attribute". Raises `UserError` for what cannot be imported."""
        value = getattr(self, name)
        if not (isinstance(value, str) and _REFERENCE.fullmatch(value)):
            return value
        try:
            return pkgutil.resolve_name(value)
        except (ImportError, AttributeError) as error:
            raise UserError(f"task {self.name!r}: {name}={value!r} cannot be imported ({error})") from error

    @property
    def spec(self) -> str:
        """What another machine's --task must say to mean this task."""
        return self.source or self.name

    @property
    def hit_component(self) -> str:
        """`hit`, or the metric where a task makes no difference."""
        return self.hit or self.metric

    def recorded(self) -> dict[str, str]:
        """What a run's configuration keeps, so that its record can be read where the task's own file is not."""
        return {"name": self.name, "source": self.source, "truth": self.truth, "metric": self.metric}

    def layer(self) -> dict[str, Any]:
        """The task's settings as a layer of the configuration."""
        turns = {} if self.environment is None else {"agent.max_turns": self.environment.turns}
        return {"agent.reward": self.rewards[0], **turns, **self.defaults}


BUILT_IN = {"vqa": "vqa_agent:TASK", "grounding": "grounding_agent:TASK"}
"""The only names of this project's that the registry knows above itself, and imports when they are asked for."""
_loaded: dict[str, Task] = {}


def get_task(spec: str) -> Task:
    """The task of a name or of a file (`path/to/my_task.py`), which is loaded once and known by its name from then on.

    Raises `UserError` for an unknown name, with the nearest one, and for a file without a usable `TASK`.
    """
    if spec in _loaded:
        return _loaded[spec]
    if spec in BUILT_IN:
        return _register(pkgutil.resolve_name(BUILT_IN[spec]))
    if spec.endswith(".py"):
        return _register(_from_file(Path(spec)))
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if spec in installed:
        try:
            task = installed[spec].load()
        except Exception as error:  # whatever another package's import raises
            raise UserError(f"--task {spec}: {installed[spec].value} does not load ({_said(error)})") from error
        return _register(_checked(task, f"{installed[spec].value} (entry point {spec})"))
    example = EXAMPLES / spec / "task.py"
    if spec.isidentifier() and example.is_file():
        return _register(_from_file(example))
    names = task_names()
    raise UserError(
        f"task {spec!r} is unknown{meant(spec, names)} (there are {', '.join(names)}; a task of your own is named by its file, "
        "--task path/to/my_task.py)"
    )


def episode_of(row: Row) -> tuple[int, dict[str, Any]]:
    """(seed, options) of an environment's row, from its meta. Raises `ValueError` for a row that is no episode."""
    seed = row["meta"].get("seed")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError("its meta has no whole number `seed`; data_utils.py episodes writes such rows")
    return seed, {name: value for name, value in row["meta"].items() if name not in ("seed", "turns")}


def is_episode(row: Row) -> bool:
    """Whether a row is one of an environment; it may be asked where the task itself is not loaded."""
    return not row["image_paths"] and "seed" in row["meta"]


async def answer(row: dict[str, Any], llm: LLM) -> tuple[str, Reward]:
    """(reply, reward) by the agent of the row's own task: the rows of one run or one file may be of several."""
    found: tuple[str, Reward] = await get_task(row["task"]).part("answer")(row, llm)
    return found


def task_names() -> list[str]:
    """The names of all tasks that are built in, loaded or installed."""
    return list(dict.fromkeys([*BUILT_IN, *_loaded, *sorted(entry_points(group=ENTRY_POINTS).names)]))


def _register(task: Task) -> Task:
    known = _loaded.get(task.name)
    if known is None and task.source and task.name in BUILT_IN:
        known = get_task(task.name)
    if known is not None and known.source != task.source:
        raise UserError(
            f"--task {task.spec} calls its task {task.name!r}, as {known.source or 'another'} does; rename one of them"
        )
    return _loaded.setdefault(task.name, task)


def _from_file(path: Path) -> Task:
    """The `TASK` of a Python file, which is run as a package of its own: `from .other import x` reads the file beside it."""
    if not path.is_file():
        raise UserError(f"--task {path} does not exist; give the path of a Python file that defines TASK")
    path = path.absolute()
    name = re.sub(r"\W", "_", f"vision_rl_task_{path.parent.name}_{path.stem}")
    specification = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    assert specification is not None and specification.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        specification.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # whatever a user's file raises
        raise UserError(f"--task {path} does not load ({_said(error)}); mend the file") from error
    return dataclasses.replace(_checked(getattr(module, "TASK", None), str(path)), source=str(path))


def _checked(task: Any, where: str) -> Task:
    if not isinstance(task, Task):
        raise UserError(f"--task: {where} defines no TASK of type vision_rl.tasks.Task (docs/add-a-task.md shows one)")
    return task


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
