"""Agent Lightning is imported without litellm, and works."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
import vision_rl
import agentlightning as agl
from agentlightning.instrumentation import LITELLM_INSTALLED
assert "litellm" not in sys.modules and not LITELLM_INSTALLED
agl.Trainer(n_runners=1, llm_proxy=None, tracer=agl.DummyTracer() if hasattr(agl, "DummyTracer") else None)
try:
    agl.LLMProxy()
except RuntimeError as error:
    print(error)
import litellm
assert litellm.completion
"""


@pytest.mark.slow
def test_litellm_is_left_out_until_somebody_asks_for_it() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "use vision_rl.rollout.proxy.VisionProxy" in done.stdout


@pytest.mark.slow
def test_a_rank_does_not_import_vllm_for_ascends_checkpoint_engine() -> None:
    code = """
import sys
import vision_rl
from verl.checkpoint_engine import CheckpointEngineRegistry, HCCLCheckpointEngine
assert HCCLCheckpointEngine is None and CheckpointEngineRegistry.get("naive")
assert "vllm" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
