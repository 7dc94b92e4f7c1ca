"""The server's side of parity: `python -m vision_rl.preflight.parity_server jobs.json` answers each job's cells with vLLM.

Every job is forked from a process that has imported vLLM, which takes ten seconds; an engine for a tiny model takes two.
The chat path is the server's own (`LLM.chat` parses, applies the template and processes the pictures as `vllm serve` does).
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import time
import traceback
from itertools import takewhile
from pathlib import Path
from typing import Any

from vision_rl.platform.parent_death import end_with_parent
from vision_rl.preflight.parity_cells import conversation

REPLY_TOKENS, CANDIDATES, SECONDS = 12, 8, 300.0


def main(path: str) -> None:
    """Answer all jobs of the file at `path`; a job's result, or its error, is written where the job says."""
    jobs = json.loads(Path(path).read_text())
    import vllm  # noqa: F401  before the fork

    for job in jobs:
        child = os.fork() if job["fork"] else 0
        if child:
            _wait(child)
            continue
        try:
            end_with_parent()
            with open(job["log"], "w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            Path(job["result"]).write_text(json.dumps(_answer(job)))
        except Exception as error:  # the report names it for this family; the others go on
            traceback.print_exc()
            Path(job["result"]).write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            if job["fork"]:
                os._exit(0)


def _wait(child: int) -> None:
    """Wait for a forked job; one that computes for too long is ended, and has no result."""
    deadline = time.monotonic() + SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM

    from vision_rl.serving.vllm_executor import mend_cpu_build, register_models

    mend_cpu_build()
    register_models()
    llm = LLM(model=job["model"], **job["engine"])
    # one after the other: the later ones then find prefix and picture caches filled by the earlier ones
    replies: dict[str, Any] = {}
    updated = False
    for cell in sorted(job["cells"], key=lambda cell: cell["after_update"]):
        try:
            if cell["after_update"] and not updated:
                _update(llm, job["update"])
                updated = True
            replies[cell["name"]] = _ask(llm, cell, job["forbidden"], job["adapter"])
        except ValueError as error:  # the request was refused; the engine lives
            replies[cell["name"]] = {"error": f"{type(error).__name__}: {error}"}
        except Exception as error:  # the engine is in no state to answer any more
            traceback.print_exc()
            left = [one["name"] for one in job["cells"] if one["name"] not in replies]
            return replies | {name: {"error": f"{type(error).__name__}: {error}"} for name in left}
    return replies


def _update(llm: Any, weights: str) -> None:
    """New weights into the living engine, and its three caches emptied, as after each step of a run."""
    for _ in range(2):  # some of what vLLM's reload spoils shows at the second one only
        llm.collective_rpc(_load, args=(weights,))
    llm.reset_prefix_cache()
    llm.llm_engine.reset_mm_cache()
    llm.llm_engine.reset_encoder_cache()


def _load(worker: Any, folder: str) -> None:
    """In the engine's worker: load what the trainer would send, in the way that a run loads it."""
    from safetensors.torch import load_file
    from vllm.platforms import current_platform

    from vision_rl.serving.vllm_reload import reload_on_cpu

    weights = load_file(Path(folder) / "model.safetensors").items()
    if current_platform.is_cpu():
        reload_on_cpu(worker.model_runner, weights)
    else:
        worker.model_runner.model.load_weights(weights)


def _ask(llm: Any, cell: dict[str, Any], forbidden: list[int], adapter: str | None) -> dict[str, Any]:
    """Prompt ids, reply ids and their log-probabilities; {"error": ...} where the server refuses the request.

    Of several candidates the one that goes furthest without a placeholder counts, up to there: barring those tokens would
    change the distribution. "others" has the rest of them, cut there too.
    """
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    lora = LoRARequest("adapter", 1, adapter) if adapter else None
    sampling = SamplingParams(
        n=CANDIDATES, temperature=cell["temperature"], max_tokens=REPLY_TOKENS, logprobs=0, seed=1
    )
    output = llm.chat(conversation(cell["messages"], openai_part), sampling, use_tqdm=False, lora_request=lora)[0]
    prefixes = [list(takewhile(lambda token: token not in forbidden, reply.token_ids)) for reply in output.outputs]
    ranked = sorted(zip(prefixes, output.outputs, strict=True), key=lambda pair: len(pair[0]), reverse=True)
    replies = [
        {
            "response_ids": ids,
            "logprobs": [step[token].logprob for token, step in zip(ids, reply.logprobs, strict=False)],
        }
        for ids, reply in ranked
        if ids
    ]
    if not replies:
        return {"error": "every reply begins with a vision placeholder"}
    return {"prompt_ids": list(output.prompt_token_ids), **replies[0], "others": replies[1:]}


def openai_part(part: dict[str, Any]) -> dict[str, Any]:
    """A cell's picture or video as the proxy lets it through to a server."""
    if part["type"] == "video":
        frames = ",".join(_base64(path) for path in part["paths"])
        return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_base64(part['path'])}"}}


def _base64(path: str) -> str:
    return base64.b64encode(Path(path).read_bytes()).decode()


if __name__ == "__main__":
    main(sys.argv[1])
