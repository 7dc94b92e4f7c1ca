"""Function calls of Qwen3.5 and its kin, read by vLLM's own parser, with the thoughts before them left as they were written.

A plug-in of vLLM's: whoever imports this module has the parser under vLLM's names.
"""

from __future__ import annotations

from typing import Any

from vllm.tool_parsers import ToolParserManager
from vllm.tool_parsers.qwen3_engine_tool_parser import Qwen3EngineToolParser

_END = "</think>"


class ThoughtfulParser(Qwen3EngineToolParser):
    """vLLM 0.24's parser takes `</think>` out of a reply that calls a function, as noise (parser/qwen3.py), and the template has
    opened the thoughts in the prompt: what the model thought would read as what it said, to the reward and in the next prompt.
    """

    def extract_tool_calls(self, model_output: str, request: Any) -> Any:
        """The calls behind the thoughts, and all else as content."""
        thoughts, end, said = model_output.rpartition(_END)
        found = super().extract_tool_calls(said, request)
        if end:
            gap = said[: len(said) - len(said.lstrip())]
            found.content = f"{thoughts}{end}{gap}{found.content or ''}".rstrip()
        return found


ToolParserManager.register_module(["qwen3_xml", "qwen3_coder"], module=ThoughtfulParser)
