"""Prepare a run from the command line: its tasks, configuration, rows, addresses and number of steps."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vision_rl.agent.media import check_pictures, check_videos
from vision_rl.config.given import parsed, read_given
from vision_rl.config.origin import FLAG, Origin, derived
from vision_rl.config.resolve import Resolved, render_resolved, resolve_tasks
from vision_rl.data.mix import DataFile, data_file, mixed, sample_by_source
from vision_rl.data.schema import read_rows, task_names_of
from vision_rl.errors import UserError
from vision_rl.media.check_images import check_row_images
from vision_rl.models.checks import check_model
from vision_rl.rollout.addresses import Addresses, free_port, private, published

Row = dict[str, Any]
MAX_NOTES = 12
MODEL = "actor_rollout_ref.model.path"


def configure(args: argparse.Namespace, cpu: bool, *, media_root: str) -> Resolved:
    """The resolved configuration; vLLM may read images below `media_root` by file:// address."""
    given, model = args.given, args.model
    preset = args.preset or (given and given.preset) or ("cpu" if cpu else "gpu_24gb")
    if model is None and preset == "cpu" and not (given and MODEL in given.values):
        from vision_rl.tiny import checkpoint_dir

        model = checkpoint_dir()
    run_dir = run_dir_of(args)
    flags: dict[str, Any] = {
        "trainer.default_local_dir": str(run_dir.absolute() / "checkpoints"),
        "trainer.experiment_name": run_dir.name,
    }
    if args.max_steps is not None:
        flags["trainer.total_training_steps"] = args.max_steps
    if args.seed is not None:
        flags["data.seed"] = args.seed
    if args.rollout_engine is not None:
        flags["actor_rollout_ref.rollout.name"] = args.rollout_engine
    if args.resume:
        flags["trainer.resume_mode"] = "auto"
    resolved = resolve_tasks(
        tasks_of_run(args),
        preset,
        args.overrides,
        model=model,
        n_runners=args.n_runners,
        variants=args.variant,
        flags=flags,
        media_root=media_root,
        given=given,
    )
    if given and given.origins:
        notes = given.differences(parsed(render_resolved(resolved)))
        resolved = dataclasses.replace(resolved, notes=(*resolved.notes, *notes[:MAX_NOTES]))
    if args.data_path is not None and args.val_data_path is not None:
        name_data(resolved, *data_files(args), origin=FLAG)
    return resolved


def take_given(args: argparse.Namespace) -> None:
    """Read --config, and take the tasks, model and data that it names where the command line names none."""
    args.given = given = read_given(args.config) if args.config else None
    if given is None:
        return
    if args.preset and given.preset:
        raise UserError(f"--config {args.config} was written under --preset {given.preset}; leave --preset out")
    args.task = args.task or given.tasks
    if given.origins.get(MODEL) == FLAG:
        args.model = args.model or given.values[MODEL]
    args.data_path, args.val_data_path = (
        args.data_path or given.files("train"),
        args.val_data_path or given.files("val"),
    )


def tasks_of_run(args: argparse.Namespace) -> list[str]:
    """The tasks that are named, or those of the data's rows, in the order in which they come.

    A file that is not there yet is passed over: --dry-run and --plan do not need it, and a run will say that it is missing.
    """
    if args.tasks is None:
        files = map(data_file, () if args.task else args.data_path or ())
        there = [file.path for file in files if file.path.is_file()]
        args.tasks = args.task or list(dict.fromkeys(name for path in there for name in task_names_of(path))) or ["vqa"]
    tasks: list[str] = args.tasks
    return tasks


def run_dir_of(args: argparse.Namespace) -> Path:
    """Where the run goes."""
    return Path(args.run_dir or Path("runs") / "+".join(tasks_of_run(args)))


def rows_of_run(path: Path, tasks: Sequence[str]) -> list[Row]:
    """The rows of a file that are of the run's tasks; `UserError` if there are none."""
    if len(tasks) == 1:
        return read_rows(path, task=tasks[0])
    rows = [row for row in read_rows(path) if row["task"] in tasks]
    if not rows:
        raise UserError(f"{path} holds no rows of {' or '.join(tasks)}, the tasks of this run")
    return rows


def media_root_of(rows: Sequence[Mapping[str, Any]], data: Path) -> str:
    """The deepest folder that holds every image: vLLM may read there and nowhere else. data: a file of rows, whose folder
    stands in where no row names an image."""
    folders = [os.path.dirname(path) for row in rows for path in row["image_paths"]]
    return os.path.commonpath(folders) if folders else str(data.absolute().parent)


def data_files(args: argparse.Namespace) -> tuple[list[DataFile], list[DataFile]]:
    """The named files for training and for validation, or synthetic tasks; half a pair is an error."""
    if (args.data_path is None) != (args.val_data_path is None):
        raise UserError(
            "name both --data-path and --val-data-path (data_utils.py split makes two files of one, by image)"
        )
    if args.data_path is not None:
        files = [data_file(text) for text in args.data_path], [data_file(text) for text in args.val_data_path]
        train = {file.path.resolve() for file in files[0]}
        if both := [file.path for file in files[1] if file.path.resolve() in train]:
            raise UserError(
                f"{both[0]} is given for training and for validation, which would measure memory; data_utils.py split makes "
                "two files of one, by image"
            )
        return files
    from vision_rl.tiny import write_tasks

    made = [write_tasks(Path("data") / "synthetic" / task, task) for task in tasks_of_run(args)]
    return [DataFile(files["train"]) for files in made], [DataFile(files["val"]) for files in made]


def name_data(resolved: Resolved, train: Sequence[DataFile], val: Sequence[DataFile], *, origin: Origin) -> None:
    """Record the data files where verl's tree has a place for them; it does not read them, and its defaults would mislead."""
    for key, files in (("train_files", train), ("val_files", val)):
        names = [str(file) for file in files]
        resolved.verl["data"][key] = names[0] if len(names) == 1 else names
        resolved.origin[f"data.{key}"] = origin


def prepared(args: argparse.Namespace, cpu: bool) -> tuple[Resolved, list[Row], list[Row], str]:
    """(configuration, training rows, validation rows, folder of all images), checked as far as is possible beforehand."""
    files = data_files(args)
    tasks = tasks_of_run(args)
    sets, val_sets = ([rows_of_run(file.path, tasks) for file in part] for part in files)
    rows = mixed(sets, [file.weight for file in files[0]])
    val_rows = [row for part in val_sets for row in part]
    media_root = media_root_of([*rows, *val_rows], files[0][0].path)
    resolved = configure(args, cpu, media_root=media_root)
    if args.data_path is None:
        name_data(resolved, *files, origin=derived("synthetic tasks"))
    model = resolved.verl["actor_rollout_ref"]["model"]
    trusted = bool(model.get("trust_remote_code") and resolved.verl["data"].get("trust_remote_code"))
    check_model(Path(model["path"]), trusted=trusted)
    rows = rows[: resolved.app.max_train_samples or None]
    used = [part[: resolved.app.max_train_samples or None] for part in sets]  # a mix takes each file's rows in order
    for checked, file in zip([*used, *val_sets], [*files[0], *files[1]], strict=True):
        check_row_images(checked, file.path)
        check_pictures(checked, resolved.app.images_per_prompt, file.path)
    if resolved.agent.video == "native":
        trainer = resolved.verl["trainer"]
        check_videos([*rows, *val_rows], trainer["n_gpus_per_node"] * trainer["nnodes"])
    return resolved, rows, val_rows, media_root


def addresses_of(args: argparse.Namespace, media_root: str) -> Addresses:
    """Where store and proxy listen: on free ports of this machine, or published with --llm-proxy."""
    external = args.external_store.rstrip("/") if args.external_store else None
    if not args.llm_proxy and args.role != "store":
        return private(free_port(), external)
    if args.role == "store":  # it has no proxy
        args.proxy_port = free_port()
    return published(args.host, args.advertise, args.proxy_port, args.store_port, media_root, external)


def total_steps(resolved: Resolved, rows: int) -> int:
    """As verl counts them: the named number, or whole batches times epochs. `UserError` if there is not one batch."""
    batch = resolved.verl["data"]["train_batch_size"]
    if rows < batch:
        raise UserError(f"{rows} training rows do not fill one batch; lower data.train_batch_size={batch}")
    trainer = resolved.verl["trainer"]
    return int(trainer["total_training_steps"] or rows // batch * trainer["total_epochs"])


def validation_rows(rows: list[dict[str, Any]], resolved: Resolved) -> list[dict[str, Any]]:
    """The fixed validation sample: the same rows at every validation, chosen by seed, of every source some."""
    wanted = resolved.app.validation.samples
    if not wanted or wanted >= len(rows):
        return rows
    return sample_by_source(rows, wanted, resolved.app.validation.seed)


def as_tasks(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Rows as Agent Lightning's tasks, each one JSON text, which no data-frame in between can change."""
    return [{"task": json.dumps(row)} for row in rows]
