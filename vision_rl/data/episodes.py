"""Rows of environments: each holds a seed and options. `data_utils.py episodes` writes them, `verify` checks them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vision_rl.data.schema import iter_rows, write_row_sets
from vision_rl.errors import UserError
from vision_rl.tasks import Task, episode_of, get_task

FIRST_SEEDS = {"train": 0, "val": 10_000_000}
"""Where the seeds of a split begin: no episode is in two of them."""


def write_episodes(
    folder: Path, task: Task, envs: Sequence[str], counts: Mapping[str, int], options: Mapping[str, Any]
) -> dict[Path, int]:
    """Write `folder/{train,val}.parquet` with so many episodes each; returns the rows by file.

    envs: NAME or NAME:TURNS, which bounds the replies of its episodes; none where the environment has no names. A split is
    shared out over the environments, and its rows stand side by side by environment: to change it costs time.
    """
    if task.environment is None:
        raise UserError(f"task {task.name} has no environment, so that there are no episodes to write")
    for split, count in counts.items():
        if count < max(len(envs), 1):
            raise UserError(f"--{split} {count} is less than one episode for each of {max(len(envs), 1)} environments")

    def rows(split: str, count: int) -> Iterator[dict[str, Any]]:
        for number in range(count):
            spec = envs[number * len(envs) // count] if envs else ""
            name, _, turns = spec.partition(":")
            if turns and not (turns.isdecimal() and int(turns)):
                raise UserError(f"--envs {spec} is not NAME or NAME:TURNS with a number of turns above 0")
            seed = FIRST_SEEDS[split] + number
            meta: dict[str, Any] = {"env": name} if name else {}
            meta |= {"seed": seed, **({"turns": int(turns)} if turns else {}), **options}
            yield {
                "id": f"{name or task.name}-{seed}",
                "task": task.name,
                "question": "",
                "source": name or task.name,
                "meta": meta,
            }

    return write_row_sets({folder / f"{split}.parquet": rows(split, count) for split, count in counts.items()})


class EpisodeChecks:
    """Opens each episode once, plays the oracle where there is one, and says what it saw.

    against: files of other splits, which must not have an episode in common. open_them: False looks at the rows alone.
    """

    def __init__(self, against: Sequence[str | Path], open_them: bool) -> None:
        self._against, self._open = against, open_them
        self._elsewhere: dict[str, str] | None = None
        self._environments: dict[str, Any] = {}
        self._seen: Counter[str] = Counter()  # what was seen, by environment and size
        self._pictures: set[str] = set()
        self._solved, self._tried, self._differ = 0, 0, 0

    def reasons(self, row: Mapping[str, Any]) -> list[str]:
        """What is wrong with an environment's row."""
        seed, options = episode_of(row)
        if self._elsewhere is None:
            self._elsewhere = {
                _key(other): str(file)
                for file in self._against
                for other in iter_rows(file)
                if get_task(other["task"]).environment
            }
        if (file := self._elsewhere.get(_key(row))) is not None:
            return [f"its episode is also in {file}"]
        return self._opened(row, seed, options) if self._open else []

    def _opened(self, row: Mapping[str, Any], seed: int, options: dict[str, Any]) -> list[str]:
        setup = get_task(row["task"]).environment
        environment = self._environments.get(row["task"]) or self._environments.setdefault(row["task"], setup.make())
        try:
            first = environment.reset(seed=seed, options=options)
            actions = environment.oracle(seed=seed, options=options)
            again = environment.reset(seed=seed, options=options)
        except UserError:
            raise
        except Exception as error:  # whatever an environment raises
            environment.close()
            del self._environments[row["task"]]
            return [f"its environment does not begin ({type(error).__name__}: {error})"]
        if not first.pictures:
            return ["its first observation has no picture"]
        picture = first.pictures[-1]
        self._seen[f"{options.get('env', row['task'])} {picture.width} x {picture.height}"] += 1
        self._pictures.add(_content(first))
        self._differ += _content(first) != _content(again)
        if actions is not None:
            self._tried += 1
            self._solved += _solved(environment, actions)
        return []

    def notes(self) -> list[str]:
        """What was seen, in sentences."""
        if not self._seen:
            return []
        total = sum(self._seen.values())
        kinds = ", ".join(f"{count} of {name} pixels" for name, count in self._seen.items())
        notes = [f"{total} episodes were opened ({kinds}), with {len(self._pictures)} different first pictures"]
        if self._differ:
            notes.append(
                f"{self._differ} episodes look different when they are opened again: a group would not see the same"
            )
        if self._tried:
            notes.append(f"the oracle knows what to do in {self._tried} episodes, and solves {self._solved} of them")
        return notes

    def close(self) -> None:
        """Close the environments."""
        for environment in self._environments.values():
            environment.close()


def _key(row: Mapping[str, Any]) -> str:
    return json.dumps([row["task"], *episode_of(row)], sort_keys=True)


def _content(observation: Any) -> str:
    digest = hashlib.sha256(observation.text.encode())
    for picture in observation.pictures:
        digest.update(picture.tobytes())
    return digest.hexdigest()


def _solved(environment: Any, actions: Sequence[Any]) -> bool:
    total = 0.0
    for action in actions:
        step = environment.step(action)
        total += step.reward
        if step.terminated or step.truncated:
            return bool(step.components.get("success", total > 0))
    return False
