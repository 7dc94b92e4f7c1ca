"""The server's side of parity with SGLang: a run's own server answers each job's cells over HTTP."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from vision_rl.config.resolve import resolve
from vision_rl.errors import UserError
from vision_rl.preflight.parity import Job, Server, synced
from vision_rl.preflight.parity_cells import Cell, conversation
from vision_rl.preflight.parity_server import CANDIDATES, REPLY_TOKENS, openai_part
from vision_rl.serving.serve import serve_sglang

_SETTINGS = ("data.max_prompt_length=1536", "data.max_response_length=64", "agent.image_transport=data")
_SECONDS = 300.0


def served_by_sglang(jobs: Sequence[Job], asked: Sequence[Sequence[Cell]], folder: Path) -> list[dict[str, Any]]:
    """As `parity.served`, by SGLang's server of a run on the CPU, one job after the other, without its `engine` and `adapter`."""
    updated = [synced(job, folder / f"{n}.synced") if job.updated else None for n, job in enumerate(jobs)]
    return [answers(job.model, new, cells) for job, new, cells in zip(jobs, updated, asked, strict=True)]


SGLANG = Server("SGLang", served_by_sglang, videos=False, masks=True)


def answers(model: Path, updated: Path | None, cells: Sequence[Cell]) -> dict[str, Any]:
    """The replies to every cell by its name, or one {"error": ...} where SGLang does not serve `model`.

    updated: the folder of the weights that a cell with `after_update` is asked about.
    """
    try:
        named = {"actor_rollout_ref.rollout.name": "sglang"}
        resolved = resolve("cpu", list(_SETTINGS), task="vqa", model=model, flags=named, media_root=model)
        actor_rollout = copy.deepcopy(resolved.verl["actor_rollout_ref"])
        actor_rollout["rollout"]["engine_kwargs"]["sglang"].pop("mm_processor_kwargs", None)  # as vLLM is asked
        with serve_sglang(actor_rollout, cpu=True) as url, httpx.Client(timeout=_SECONDS, trust_env=False) as client:
            known = {cell.name: _ask(client, url, cell) for cell in cells if not cell.after_update}
            later = [cell for cell in cells if cell.after_update]
            error = _update(client, url.removesuffix("/v1"), updated) if updated and later else None
            return known | {cell.name: {"error": error} if error else _ask(client, url, cell) for cell in later}
    except UserError as error:
        return {"error": str(error).replace(f" ({model})", "")}  # a folder of one machine says nothing


def _update(client: httpx.Client, server: str, folder: Path) -> str | None:
    """New weights into the living server, by the loader that a run's weights go through; what it says where it refuses."""
    reply = _post(client, f"{server}/update_weights_from_disk", {"model_path": str(folder)})
    return None if reply.get("success") else f"the update of the weights failed: {reply.get('error') or reply}"


def _ask(client: httpx.Client, url: str, cell: Cell) -> dict[str, Any]:
    """As `vision_rl.preflight.parity_server` answers: the longest of the candidates. SGLang samples no placeholder at all."""
    body = {
        "model": "model",
        "messages": conversation(cell.messages, openai_part),
        "temperature": cell.temperature,
        "max_tokens": REPLY_TOKENS,
        "logprobs": True,
        "n": CANDIDATES,
    }
    content = _post(client, f"{url}/chat/completions", body)
    if "error" in content:
        return content
    choice = max(content["choices"], key=lambda one: len(one["token_ids"]))
    values = [token["logprob"] for token in choice["logprobs"]["content"]]
    return {"prompt_ids": content["prompt_token_ids"], "response_ids": choice["token_ids"], "logprobs": values}


def _post(client: httpx.Client, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The server's reply, or {"error": ...}: its own sentence, or that it is gone."""
    try:
        reply = client.post(url, json=body)
        content = reply.json()
    except httpx.TransportError as error:
        return {"error": f"SGLang has ended ({type(error).__name__})"}
    except ValueError:
        return {"error": reply.text}
    return dict(content) if reply.is_success else {"error": str(content.get("message", content))}
