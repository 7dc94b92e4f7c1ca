"""The error that ended a run, as one sentence. Ray's whole text stays in the run's logs/."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from vision_rl.errors import UserError
from vision_rl.run.directory import STOP_FILE

TRACEBACK = "traceback.txt"
"""In logs/: the whole of what Ray said of the error that ended the run."""
MAX_ERROR = 500
"""Characters of an error that are worth a sentence."""
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception)\b")
FAILED_STARTS = {
    "_check_resource_available": "Ray's cluster is too small",
    ".launch_server()": "the model server did not start",
    "init_model()": "the model could not be loaded",
}
"""What has failed, by a call as Ray names it in the traceback that it brings along."""
_TOO_LONG = re.compile(r"max_model_len \((\d+)\) should be less than or equal to max_position_embeddings \((\d+)\)")
"""verl's own words for a request that is longer than the model."""


def last_error(traceback: str) -> str:
    """The message at the end of a traceback, on one line: all that follows the last line that begins with an exception."""
    lines = traceback.strip().splitlines()
    begins = [number for number, line in enumerate(lines) if _EXCEPTION.match(line)]
    return " ".join(" ".join(lines[begins[-1] if begins else -1 :]).split())[:MAX_ERROR]


def to_user_error(error: Exception, logs: Path, how_to_go_on: str) -> UserError:
    """The error to raise in place of Ray's; its whole text is written into `logs`, the run's folder of logs."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, UserError):
        return cause
    with contextlib.suppress(OSError):  # a full disk must not hide why the run ended
        logs.mkdir(exist_ok=True)
        (logs / TRACEBACK).write_text(f"{error}\n", encoding="utf-8")
    if getattr(cause, "actor_init_failed", None) is False:  # Ray's ActorDiedError, of one that had started
        return UserError(_actor_died_message(cause, logs, how_to_go_on))
    if found := _TOO_LONG.search(str(error)):
        return UserError(
            f"a request may take {found[1]} tokens (data.max_prompt_length + data.max_response_length, or what "
            f"actor_rollout_ref.rollout.max_model_len says), and the model has {found[2]} positions; lower "
            "data.max_prompt_length, or name a model with more by --model"
        )
    for call, failure in FAILED_STARTS.items():
        if call in str(error):
            return UserError(_startup_message(failure, error, logs))
    return UserError(
        f"the trainer failed: {last_error(str(error))}; this is a defect of the program, or of code that the "
        f"configuration names, not of a setting: {logs / TRACEBACK} has the whole traceback; {how_to_go_on}"
    )


def _actor_died_message(error: Exception, logs: Path, how_to_go_on: str) -> str:
    """A worker process that was killed: Ray's reason is a page long."""
    name = re.search(r"class_name: (\w+)", str(error))
    which = f"a process of the trainer ({name.group(1) if name else 'a Ray actor'})"
    if (logs.parent / STOP_FILE).exists():
        return (
            f"{which} was ended together with the run, which was stopped (SIGTERM or Ctrl-C): the step under way is lost; "
            f"a signal to train_agent.py alone lets it finish and be kept; {how_to_go_on}"
        )
    return (
        f"{which} died: killed, most often for want of main "
        f"memory (`dmesg | grep -i oom` says so), or crashed ({logs} has what it printed); {how_to_go_on}"
    )


def _startup_message(failure: str, error: Exception, logs: Path) -> str:
    """A start that failed: the traceback is pages long, and its reason often stands in another log."""
    return (
        f"{failure}: {last_error(str(error))}; {logs} has what was printed, --plan estimates the memory, --doctor checks "
        "model and versions"
    )
