"""Where the rollouts of each step stand in rollouts.jsonl: one pass, later only over what is new.

The file of a long run has gigabytes; a page shows the rollouts of a few steps, so only their places are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vision_rl.run.log import ROLLOUTS, parsed

Rollout = dict[str, Any]
DROPPED = "dropped: "
"""Before the reason of a rollout whose samples were left out of the batch."""
EXAMPLES = 3
"""Of each failure."""


@dataclass
class Failure:
    """A reason why rollouts were lost. examples: ids of rows, with step, worker and what exactly was wrong."""

    count: int = 0
    first: int = 0
    last: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, rollout: Rollout, why: str) -> None:
        """Count one more; steps come in order."""
        self.first = self.first if self.count else rollout["step"]
        self.count, self.last = self.count + 1, rollout["step"]
        if len(self.examples) < EXAMPLES:
            reason = f": {why}" if why else ""
            self.examples.append(
                f"{rollout['id']} (step {rollout['step']}, {rollout['worker'] or 'no worker'}){reason}"
            )


class RolloutIndex:
    """The places of a run's rollouts by mode and step, and what can be counted on the way.

    failures: by reason, those of whole rollouts and, as "dropped: ...", of samples that were left out of a batch.
    components: names of the reward's parts. total: rollouts so far.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / ROLLOUTS
        self._forget()

    def _forget(self) -> None:
        self.failures: dict[str, Failure] = {}
        self.components: dict[str, None] = {}
        self.total = 0
        self._places: dict[tuple[str, int], list[int]] = {}
        self._end, self._inode = 0, 0

    def update(self) -> None:
        """Read what was written since the last call; a file that was written anew (a resumed run) from its start.

        A last line that is still being written is left for the next call. Raises `UserError` for a damaged line.
        """
        try:
            file = open(self.path, "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            return
        with file:
            state = self.path.stat()
            if state.st_ino != self._inode or state.st_size < self._end:
                self._forget()
                self._inode = state.st_ino
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._add(parsed(line, self.path), self._end)
                self._end += len(line)

    def _add(self, rollout: Rollout, place: int) -> None:
        self.total += 1
        self._places.setdefault((rollout["mode"], rollout["step"]), []).append(place)
        self.components.update(dict.fromkeys(name for name in rollout["reward"] if name != "reward"))
        if reason := lost(rollout):
            self.failures.setdefault(reason, Failure()).add(rollout, rollout["reason"])

    def steps(self, mode: str) -> list[int]:
        """The steps that have rollouts of that mode ("train" or "val"), in order."""
        return sorted(step for kind, step in self._places if kind == mode)

    def read(self, mode: str, step: int) -> list[Rollout]:
        """The rollouts of a step."""
        places = self._places.get((mode, step), [])
        if not places:
            return []
        with open(self.path, "rb") as file:
            return [parsed(_line_at(file, place), self.path) for place in places]


def lost(rollout: Rollout) -> str:
    """Why a rollout taught nothing: its failure, or why its samples were dropped; "" if it did teach."""
    dropped = rollout.get("dropped", "")
    return rollout["failure"] or (DROPPED + dropped if dropped else "")


def _line_at(file: Any, place: int) -> bytes:
    file.seek(place)
    line: bytes = file.readline()
    return line
