"""`--config FILE`: read a run's config.yaml to repeat the run, or a plain file of settings."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vision_rl.config.origin import FLAG, Layer, Origin
from vision_rl.errors import UserError

OF_THE_PLACE = ("trainer.experiment_name", "trainer.default_local_dir", "trainer.resume_mode")
_LINE = re.compile(r"^(\S+): .*  # (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Given:
    """values: every setting of the file by its dotted key; origins: where a run's own file says that each came from, empty
    for a file that somebody wrote."""

    path: Path
    values: Mapping[str, Any]
    origins: Mapping[str, Origin]

    @property
    def preset(self) -> str | None:
        """The preset of the run that wrote the file."""
        return next((origin.name for origin in self.origins.values() if origin.layer is Layer.PRESET), None)

    @property
    def tasks(self) -> list[str]:
        """What --task must say for the tasks of that run."""
        names = str(self.values.get("task.name") or "").split("+")
        return [self.values["task.source"]] if self.values.get("task.source") else [name for name in names if name]

    def files(self, part: str) -> list[str] | None:
        """The data files of "train" or "val"; None where the run drew its own rows."""
        key = f"data.{part}_files"
        named = self.values.get(key) if self._chosen(key) else None
        return [named] if isinstance(named, str) else named

    def _chosen(self, key: str) -> bool:
        return key not in self.origins or not self.origins[key].layer.is_recomputed

    def layers(self) -> list[tuple[Origin, dict[str, Any]]]:
        """The settings that somebody chose, each under the origin that it has in the file."""
        found: dict[Origin, dict[str, Any]] = {}
        for key, value in self.values.items():
            of_the_place = key in OF_THE_PLACE and self.origins.get(key) == FLAG
            if self._chosen(key) and not of_the_place and not key.startswith(("task.", "data.train_f", "data.val_f")):
                found.setdefault(self.origins.get(key, Origin(Layer.CONFIG, self.path.name)), {})[key] = value
        return list(found.items())

    def differences(self, kept: Mapping[str, Any]) -> list[str]:
        """Notes on what the file's run had otherwise and nobody chose; `kept`: this run, as it writes itself."""
        chosen = {key for _, values in self.layers() for key in values}
        apart = [key for key in self.values if key in kept and key not in (*chosen, *OF_THE_PLACE)]
        return [
            f"{self.path} has {key}={self.values[key]}, here it is {kept[key]}: the packages or the machine are others"
            for key in apart
            if self.values[key] != kept[key]
            and not key.startswith(("task.", "data.train_f", "data.val_f"))
            and not key.endswith((".allowed_local_media_path", ".experiment_name"))  # follow the data, and --run-dir
        ]


def read_given(path: Path) -> Given:
    """The file; `UserError` for what is no file of settings."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = parsed(text)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"--config {path} cannot be read as settings: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"--config {path} must hold settings, such as the config.yaml of a run")
    origins = {}
    for key, comment in _LINE.findall(text):
        with contextlib.suppress(ValueError):  # a comment of somebody's own
            origins[key] = Origin.parse(comment)
    return Given(path, tree if origins else dict(_flat(tree)), origins)


def parsed(text: str) -> Any:
    """The settings of a text, by OmegaConf's reading of YAML, to which 1e-05 is a number."""
    return OmegaConf.to_container(OmegaConf.create(text))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Any:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
