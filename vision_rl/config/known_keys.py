"""The known configuration keys and their types, read from the source of the installed packages without importing them.

verl's YAML files give keys and defaults (composed with hydra, as verl does), its dataclasses give further fields and
types, and the argument classes of vLLM and SGLang give the keys of `engine_kwargs`. The Python files are parsed, never executed:
importing verl, vLLM or Agent Lightning costs ten seconds each, composing costs a third of one.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from vision_rl.errors import UserError

# Dictionaries whose keys verl passes on unread to something that has its own opinion of them.
FREE_FORM = (
    "actor_rollout_ref.model.override_config",
    "actor_rollout_ref.model.fused_kernel_options",
    "actor_rollout_ref.actor.optim.override_optimizer_config",
    "actor_rollout_ref.actor.fsdp_config.wrap_policy",
    "actor_rollout_ref.ref.fsdp_config.wrap_policy",
    "actor_rollout_ref.actor.megatron.override_ddp_config",
    "actor_rollout_ref.actor.megatron.override_transformer_config",
    "actor_rollout_ref.actor.megatron.override_mcore_model_config",
    "actor_rollout_ref.ref.megatron.override_ddp_config",
    "actor_rollout_ref.ref.megatron.override_transformer_config",
    "actor_rollout_ref.ref.megatron.override_mcore_model_config",
    "actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs",
)
VLLM_KWARGS = "actor_rollout_ref.rollout.engine_kwargs.vllm"
SGLANG_KWARGS = "actor_rollout_ref.rollout.engine_kwargs.sglang"
# Arguments that SGLang does not have and `sglang_server.py` reads, the first two under vLLM's names.
SGLANG_OWN = ("mm_processor_kwargs", "allowed_local_media_path", "mm_embedding_cache_mb")
RAY_INIT = "ray_kwargs.ray_init"
# Keys that neither YAML nor dataclass names and that code reads all the same, with the type of their value.
UNLISTED = {
    **{
        f"actor_rollout_ref.{role}.fsdp_config.mixed_precision.{name}": "str"  # verl/workers/engine/fsdp/transformer_impl.py
        for role in ("actor", "ref")
        for name in ("param_dtype", "reduce_dtype", "buffer_dtype")
    },
    # A number or text with two bounds (verl/trainer/config/algorithm.py); the YAML names no class to tell.
    "algorithm.rollout_correction.rollout_is_threshold": "Any",
    "algorithm.rollout_correction.rollout_rs_threshold": "Any",
    **{f"{RAY_INIT}.{key}": "Optional[int]" for key in ("num_gpus", "object_store_memory", "dashboard_port")},
    **{f"{RAY_INIT}.{key}": "Optional[str]" for key in ("address", "namespace", "dashboard_host", "_temp_dir")},
    **{f"{RAY_INIT}.{key}": "bool" for key in ("include_dashboard", "log_to_driver", "ignore_reinit_error")},
}
# Fields that verl fills at run time: setting them from outside is overwritten or breaks.
RUNTIME_FIELDS = {
    "hf_config",
    "generation_config",
    "tokenizer",
    "processor",
    "local_path",
    "local_hf_config_path",
    "local_tokenizer_path",
    "architectures",
    "engine",
    "model_config",
    "_target_",
}


def package_dir(name: str) -> Path:
    """Directory of an installed top-level package, found without importing it; `UserError` where it is missing."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the package {name!r} is not installed in this environment; install the project with its extras"
        )
    return Path(next(iter(spec.submodule_search_locations)))


@functools.cache
def _compose(megatron: bool) -> DictConfig:
    directory = package_dir("verl") / "trainer" / "config"
    with initialize_config_dir(version_base=None, config_dir=str(directory)):
        config = compose("ppo_trainer", overrides=["model_engine=megatron"] if megatron else [])
    OmegaConf.set_struct(config, False)
    # No reward model runs, but verl's tree does not resolve without the name of an engine that would serve it.
    config.reward.reward_model.rollout.name = "vllm"
    config.reward.num_workers = 0  # verl's own reward workers would only idle: the agents emit the rewards
    return config


def verl_defaults(megatron: bool) -> DictConfig:
    """verl's own composed defaults for the FSDP or the Megatron workers, interpolations unresolved."""
    return _compose(megatron).copy()


def agentlightning_defaults() -> DictConfig:
    """The `agentlightning` section of `agentlightning/verl/config.yaml`; the rest of it is for verl 0.6's agent loops."""
    config = OmegaConf.load(package_dir("agentlightning") / "verl" / "config.yaml")
    return OmegaConf.create({"agentlightning": config.agentlightning})


def _class_fields(path: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Every class in a Python file: its base names and its annotated fields as {name: annotation text}."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            fields = {
                item.target.id: ast.unparse(item.annotation)
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
            found[node.name] = ([ast.unparse(base) for base in node.bases], fields)
    return found


@functools.cache
def _dataclasses() -> dict[str, tuple[list[str], dict[str, str]]]:
    root = package_dir("verl")
    files = [*(root / "workers" / "config").glob("*.py"), *(root / "trainer" / "config").glob("*.py")]
    files.append(root / "utils" / "profiler" / "config.py")
    classes: dict[str, tuple[list[str], dict[str, str]]] = {}
    for path in files:
        classes.update(_class_fields(path))
    return classes


def _fields(class_name: str) -> dict[str, str]:
    bases, own = _dataclasses().get(class_name, ([], {}))
    merged: dict[str, str] = {}
    for base in bases:
        merged.update(_fields(base))
    return {**merged, **own}


@functools.cache
def vllm_arguments() -> frozenset[str]:
    """Names that `vllm serve` accepts as `--name` (verl says false as `--no-name`); empty where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        return frozenset()
    root = package_dir("vllm")
    names: set[str] = set()
    for path, class_name in (
        (root / "engine" / "arg_utils.py", "EngineArgs"),
        (root / "engine" / "arg_utils.py", "AsyncEngineArgs"),
        (root / "entrypoints" / "openai" / "cli_args.py", "BaseFrontendArgs"),
        (root / "entrypoints" / "openai" / "cli_args.py", "FrontendArgs"),
    ):
        _, fields = _class_fields(path).get(class_name, ([], {}))
        names.update(fields)
    return frozenset(names)


@functools.cache
def sglang_arguments() -> frozenset[str]:
    """Fields of SGLang's `ServerArgs`, and those that this project reads; empty where SGLang is not installed."""
    if importlib.util.find_spec("sglang") is None:
        return frozenset()
    _, fields = _class_fields(package_dir("sglang") / "srt" / "server_args.py")["ServerArgs"]
    return frozenset((*fields, *SGLANG_OWN))


@dataclass(frozen=True)
class Key:
    """What is known of one key: the default, and the type as annotation text ("" where only the default tells)."""

    default: Any
    annotation: str = ""


def known_keys(config: DictConfig) -> dict[str, Key]:
    """Every dotted key of a composed tree, leaves and branches, plus the dataclass fields that the YAML leaves out."""
    keys: dict[str, Key] = {}

    def visit(node: Any, prefix: str) -> None:
        target = node.get("_target_") if "_target_" in node else None
        annotations = _fields(str(target).rsplit(".", 1)[-1]) if target else {}
        for name, annotation in annotations.items():
            if name not in RUNTIME_FIELDS:
                keys[f"{prefix}{name}"] = Key(None, annotation)
        for name in node:
            if name == "_target_":
                continue
            path = f"{prefix}{name}"
            raw = node._get_node(name)
            if isinstance(raw, DictConfig) and not raw._is_none() and not raw._is_interpolation():
                keys[path] = Key({})
                visit(raw, f"{path}.")
            else:
                value = "???" if OmegaConf.is_missing(node, name) else _plain(node, name)
                keys[path] = Key(value, annotations.get(str(name), ""))
                nested = _fields(annotations.get(str(name), ""))
                for field, annotation in nested.items():
                    keys.setdefault(f"{path}.{field}", Key(None, annotation))

    visit(config, "")
    keys.update({name: Key(None, annotation) for name, annotation in UNLISTED.items()})
    return keys


def _plain(node: DictConfig, name: Any) -> Any:
    value = node[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
