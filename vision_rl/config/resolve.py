"""One configuration: verl's own defaults, then small layers, checked key by key, each the origin of what it set.

Layers, later ones win: verl 0.9.1 (hydra-composed) < agentlightning < vision_rl/configs/base < the task's own row <
configs/<preset> < configs/variants/<variant>... < flags < overrides. What nobody set by choice
is then derived (attention kernel, pixel limits, vLLM's flags). Nothing here imports torch, verl or vLLM at module
level: `--dry-run` answers at once.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vision_rl.config import checks, known_keys, refused_keys
from vision_rl.config.derived import Derivation
from vision_rl.config.given import Given
from vision_rl.config.known_keys import VLLM_KWARGS, Key
from vision_rl.config.origin import FLAG, OVERRIDE, VERL, Layer, Origin
from vision_rl.errors import UserError, meant
from vision_rl.rewards.user import is_user_reward
from vision_rl.settings import AgentSettings, AppSettings
from vision_rl.tasks import Task, get_task

CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class Resolved:
    """The whole configuration, interpolations resolved.

    verl is the complete tree that its trainer takes. agents: the settings of each task of the run. origin maps every dotted key
    to the layer that set it; notes say what was chosen automatically and why.
    """

    preset: str
    tasks: tuple[str, ...]
    variants: tuple[str, ...]
    verl: dict[str, Any]
    app: AppSettings
    agents: Mapping[str, AgentSettings]
    origin: dict[str, Origin]
    notes: tuple[str, ...] = field(default=())

    @property
    def task(self) -> str:
        """The name of the task; of a mixed run the names of all, the first row's first."""
        return "+".join(self.tasks)

    @property
    def agent(self) -> AgentSettings:
        """The settings of the first task; `agents` has those of each."""
        return self.agents[self.tasks[0]]

    @property
    def strategy(self) -> str:
        """ "fsdp", "fsdp2" or "megatron"."""
        return str(self.verl["actor_rollout_ref"]["actor"]["strategy"])

    def tree(self) -> dict[str, Any]:
        """verl's and our settings in one tree, as --dry-run prints and the run directory keeps it."""
        ours = {"agent": dataclasses.asdict(self.agent), "app": dataclasses.asdict(self.app)}
        task: dict[str, Any] = get_task(self.tasks[0]).recorded()
        if len(self.tasks) > 1:
            truths = {name: get_task(name).truth for name in self.tasks}
            task |= {"name": self.task, "metric": "reward", "truths": truths}
        return {"task": task, **self.verl, **ours}


def presets() -> list[str]:
    """Names for --preset."""
    return sorted(path.stem for path in CONFIG_DIR.glob("*.yaml") if path.stem != "base")


def variants() -> list[str]:
    """Names for --variant."""
    return sorted(path.stem for path in (CONFIG_DIR / "variants").glob("*.yaml"))


def resolve(
    preset: str,
    overrides: Sequence[str] = (),
    *,
    task: str,
    model: str | Path | None = None,
    n_runners: int | None = None,
    variants: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    media_root: str | Path | None = None,
    given: Given | None = None,
) -> Resolved:
    """Compose, check and complete the configuration.

    preset and variants name files in configs/; overrides are `key=value` in hydra's grammar (`+key=value` accepted,
    equally checked). flags are dotted keys set by command-line flags, e.g. {"trainer.total_training_steps": 3}. model
    is a folder or a hub name (None: the preset's own). media_root is the folder under which vLLM may read images by
    file://. given: the file of --config; one that a run has written stands in for base and preset. Raises `UserError` for
    anything unknown, mistyped or inconsistent.
    """
    row = get_task(task)
    whole = given is not None and bool(given.origins)
    named = [] if whole else [_file_layer(Origin(Layer.BASE), CONFIG_DIR / "base.yaml")]
    chosen = [
        *([] if whole else [_named_layer(Layer.PRESET, preset, CONFIG_DIR)]),
        *(given.layers() if given else []),
        *(_named_layer(Layer.VARIANT, v, CONFIG_DIR / "variants") for v in variants),
    ]
    by_flag = dict(flags or {})
    if model is not None:
        folder = Path(model).expanduser()  # absolute: Ray's workers have working directories of their own
        by_flag["actor_rollout_ref.model.path"] = str(folder.resolve()) if folder.is_dir() else str(model)
    if n_runners is not None:
        by_flag["app.n_runners"] = n_runners
    top = [(FLAG, by_flag), *(_override_layer(text) for text in overrides)]
    strategy = _last("actor_rollout_ref.actor.strategy", [*named, *chosen, *top])
    if strategy not in refused_keys.CHOICES["actor_rollout_ref.actor.strategy"]:
        raise UserError(f"actor_rollout_ref.actor.strategy={strategy} is unknown; choose fsdp, fsdp2 or megatron")
    named.append((Origin(Layer.TASK, row.name), row.layer()))

    tree, origin, known = _defaults(strategy == "megatron")
    tree, origin = copy.deepcopy(tree), dict(origin)
    imports = bool(_last("app.imports", [*named, *chosen, *top]))
    under = " (under Megatron; FSDP's settings do not exist there)" if strategy == "megatron" else ""
    for layer, values in [*named, *chosen, *top]:
        for key, value in values.items():
            refused_keys.check(key, value, known, layer, imports=imports, note=under)
            OmegaConf.update(tree, key, value, merge=False, force_add=True)
            origin[key] = layer
    derivation = Derivation(tree, origin, media_root)
    derivation.run()
    resolved = _finish(preset, row, tuple(variants), tree, origin, tuple(derivation.notes))
    checks.check(row, resolved.verl, resolved.agent, resolved.app, derivation.model)
    return resolved


def resolve_tasks(tasks: Sequence[str], preset: str, overrides: Sequence[str] = (), **options: Any) -> Resolved:
    """`resolve` for rows of several tasks: one configuration of the training, and the agent settings of each task.

    An `agent.reward` holds for the tasks that have it; the others keep their own default. Raises `UserError` if none has
    it, or if the tasks do not agree on a setting that the whole run has.
    """
    parts = [resolve(preset, overrides_for(task, tasks, overrides), task=task, **options) for task in tasks]
    first = parts[0]
    for other in parts[1:]:
        theirs = dict(_leaves(other.verl))
        if apart := [key for key, value in _leaves(first.verl) if theirs.get(key) != value]:
            raise UserError(f"the tasks {' and '.join(tasks)} want another {apart[0]} each; set it for the run")
    return dataclasses.replace(first, tasks=tuple(tasks), agents={part.task: part.agent for part in parts})


def overrides_for(task: str, tasks: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The overrides that hold for the rows of a task, one of `tasks`; `UserError` for an agent.reward that none has."""
    kept = []
    for text in overrides:
        key, _, name = text.lstrip("+").partition("=")
        if len(tasks) > 1 and key == "agent.reward" and not is_user_reward(name):
            having = [other for other in tasks if name in get_task(other).rewards]
            if not having:
                raise UserError(f"agent.reward={name} is no reward of {' or '.join(tasks)}; docs/rewards.md lists them")
            if task not in having:
                continue
        kept.append(text)
    return kept


@functools.cache
def _defaults(megatron: bool) -> tuple[DictConfig, dict[str, Origin], dict[str, Key]]:
    """What holds where no layer says otherwise: the tree, the origin of each leaf, and every key that may be set."""
    tree = known_keys.verl_defaults(megatron)
    origin = {key: VERL for key, _ in _leaves(tree)}
    layer = known_keys.agentlightning_defaults()
    origin.update({key: Origin(Layer.AGENTLIGHTNING) for key, _ in _leaves(layer)})
    tree = OmegaConf.merge(tree, layer)
    ours = OmegaConf.create({"agent": dataclasses.asdict(AgentSettings()), "app": dataclasses.asdict(AppSettings())})
    origin.update({key: Origin(Layer.OURS) for key, _ in _leaves(ours)})
    merged = OmegaConf.merge(tree, ours)
    assert isinstance(merged, DictConfig)
    return merged, origin, known_keys.known_keys(merged) | _our_keys()


def _our_keys() -> dict[str, Key]:
    found: dict[str, Key] = {}

    def visit(cls: Any, prefix: str) -> None:
        for item in dataclasses.fields(cls):
            if dataclasses.is_dataclass(item.default_factory):
                found[f"{prefix}.{item.name}"] = Key({})
                visit(item.default_factory, f"{prefix}.{item.name}")
            else:
                found[f"{prefix}.{item.name}"] = Key(item.default, str(item.type))

    for root, cls in (("agent", AgentSettings), ("app", AppSettings)):
        found[root] = Key({})
        visit(cls, root)
    return found


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted leaves of a tree, raw: interpolations stay text, empty dictionaries are leaves, lists too."""
    container = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    for name, value in container.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value and not path.startswith(VLLM_KWARGS + "."):
            yield from _leaves(value, f"{path}.")
        elif name != "_target_":
            yield path, value


def _file_layer(origin: Origin, path: Path) -> tuple[Origin, dict[str, Any]]:
    try:
        loaded = OmegaConf.load(path)
    except (OSError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path.name} cannot be read as a configuration file: {error}") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path.name} must hold sections of keys, such as `data:`")
    return origin, dict(_leaves(loaded))


def _named_layer(kind: Layer, name: str, directory: Path) -> tuple[Origin, dict[str, Any]]:
    path = Path(name) if name.endswith(".yaml") else directory / f"{name}.yaml"
    names = presets() if kind is Layer.PRESET else variants()
    if not path.is_file():
        raise UserError(
            f"--{kind.value} {name} does not exist{meant(name, names)} (there are {', '.join(names)}, or give a path to a "
            ".yaml file)"
        )
    return _file_layer(Origin(kind, path.stem), path)


def _override_layer(text: str) -> tuple[Origin, dict[str, Any]]:
    label = f"override {text}"
    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{label}: write it as key=value in hydra's grammar, quoting special characters ({reason})"
        ) from error
    if parsed.type is OverrideType.DEL:
        raise UserError(f"{label}: settings cannot be deleted; set {parsed.key_or_group}=null where null is allowed")
    if parsed.is_sweep_override():
        raise UserError(f"{label}: a comma outside brackets means several runs; write a list as [a,b]")
    value: Any = parsed.value()
    key = parsed.key_or_group
    expand = isinstance(value, dict) and value and not key.startswith(VLLM_KWARGS + ".")
    return OVERRIDE, dict(_leaves(value, f"{key}.")) if expand else {key: value}


def _last(key: str, layers: Sequence[tuple[Origin, Mapping[str, Any]]]) -> Any:
    return next((values[key] for _, values in reversed(layers) if key in values), None)


def _finish(
    preset: str,
    task: Task,
    chosen: tuple[str, ...],
    tree: DictConfig,
    origin: dict[str, Origin],
    notes: tuple[str, ...],
) -> Resolved:
    try:
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    agent = _build(AgentSettings, plain.pop("agent"))
    app = _build(AppSettings, plain.pop("app"))
    origin = {**origin, **{f"task.{name}": FLAG for name in task.recorded()}}
    return Resolved(preset, (task.name,), chosen, plain, app, {task.name: agent}, origin, notes)


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    """A frozen dataclass tree from nested dictionaries."""
    nested = {
        item.name: item.default_factory
        for item in dataclasses.fields(cls)
        if dataclasses.is_dataclass(item.default_factory)
    }
    return cls(**{name: _build(nested[name], value) if name in nested else value for name, value in values.items()})


def validate_with_verl(resolved: Resolved) -> None:
    """Run verl's own checks: `validate_config`, and every dataclass that its workers build from this tree.

    Imports verl (ten seconds) and reads the model's config and tokenizer: for tests and --doctor. Raises `UserError`.
    """
    from hydra.errors import InstantiationException
    from verl.trainer.ppo.utils import need_critic
    from verl.utils.config import omega_conf_to_dataclass, validate_config
    from verl.workers.config import HFModelConfig

    config = OmegaConf.create(resolved.verl)
    worker = config.actor_rollout_ref
    reference = config.algorithm.use_kl_in_reward or worker.actor.use_kl_loss
    try:
        validate_config(config, use_reference_policy=reference, use_critic=need_critic(config))
        omega_conf_to_dataclass(worker.rollout)
        omega_conf_to_dataclass(worker.model, dataclass_type=HFModelConfig)
        omega_conf_to_dataclass(config.algorithm)
        omega_conf_to_dataclass(config.critic.optim)
        omega_conf_to_dataclass(worker.ref.megatron if resolved.strategy == "megatron" else worker.ref.fsdp_config)
        omega_conf_to_dataclass(config.trainer.v1.separate_async.hybrid_rollout)
    except (AssertionError, ValueError, TypeError, NotImplementedError, InstantiationException) as error:
        raise UserError(f"verl refuses this configuration: {' '.join(str(error).split())}") from error


def render_resolved(resolved: Resolved, *, changed_only: bool = False) -> str:
    """The tree as text, one `key: value  # origin` a line; with changed_only what differs from preset and defaults."""
    rows = []
    for key, value in _leaves(resolved.tree()):
        source = _origin_of(key, resolved.origin)
        if not (changed_only and (source.layer.is_default or source.layer is Layer.PRESET)):
            rows.append((key, json.dumps(value, default=str), source))
    width = min(100, max(len(f"{key}: {value}") for key, value, _ in rows))
    lines = [f"{f'{key}: {value}':<{width}}  # {source}" for key, value, source in rows]
    return "\n".join([*lines, *(f"# note: {note}" for note in resolved.notes)])


def _origin_of(key: str, origin: Mapping[str, Origin]) -> Origin:
    while key not in origin and "." in key:
        key = key.rsplit(".", 1)[0]
    return origin.get(key, VERL)
