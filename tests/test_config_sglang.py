"""The configuration with SGLang as the rollout engine: what follows from the settings, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.test_config import ROLLOUT, TINY, at
from vision_rl.config import known_keys
from vision_rl.config.resolve import resolve
from vision_rl.errors import UserError

SGLANG = known_keys.SGLANG_KWARGS


@pytest.fixture
def sglang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes it look as if a release of SGLang were installed; nothing of it is imported to resolve a configuration."""

    def install(version: str) -> None:
        arguments = tmp_path / "sglang" / "srt" / "server_args.py"
        arguments.parent.mkdir(parents=True)
        (tmp_path / "sglang" / "__init__.py").touch()
        arguments.write_text(
            "class ServerArgs:\n    attention_backend: str = 'x'\n    sampling_defaults: str = 'model'\n"
        )
        metadata = tmp_path / f"sglang-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        known_keys.sglang_arguments.cache_clear()

    yield install
    known_keys.sglang_arguments.cache_clear()


def test_what_sglang_is_given_follows_from_the_settings(sglang: Callable[[str], None], tmp_path: Path) -> None:
    sglang("0.5.12")
    flags = {f"{ROLLOUT}.name": "sglang"}
    resolved = resolve(
        "cpu", ["agent.max_pixels=10000"], task="vqa", model=TINY, flags=flags, media_root=tmp_path / "images"
    )
    assert at(resolved, SGLANG) == {
        "mm_processor_kwargs": {"max_pixels": 10000},
        "mm_embedding_cache_mb": 0,
        "sampling_defaults": "openai",
        "allowed_local_media_path": str(tmp_path / "images"),
    }
    assert at(resolved, f"{ROLLOUT}.skip_tokenizer_init") is False
    frozen = resolve(
        "gpu_24gb", task="vqa", model="Qwen/Qwen2.5-VL-3B-Instruct", flags=flags, variants=["freeze_vision"]
    )
    assert at(frozen, f"{SGLANG}.mm_embedding_cache_mb") == 100, "a frozen tower's embeddings stay true"


def test_servers_on_gpus_of_their_own_are_refused(sglang: Callable[[str], None]) -> None:
    sglang("0.5.12")
    with pytest.raises(UserError, match="separate_async does not reach SGLang"):
        resolve("cpu", [f"{ROLLOUT}.name=sglang"], task="vqa", model=TINY, variants=["async"])


@pytest.mark.parametrize(
    ("version", "preset", "override", "message"),
    [
        ("0.5.4", "cpu", "", r"sglang is installed as 0\.5\.4, and this project needs 0\.5\.12"),
        ("0.5.12", "cpu", f"{SGLANG}.atention_backend=x", r"did you mean .*sglang\.attention_backend"),
        ("0.5.12", "cpu", f"{SGLANG}.mm_embedding_cache_mb=100", "embeddings of the old weights"),
        ("0.5.12", "lora", "", "LoRA adapters do not reach SGLang"),
        ("0.5.12", "gpu_24gb", "actor_rollout_ref.model.path=OpenGVLab/InternVL3-2B-hf", "cannot be served by sglang"),
    ],
)
def test_what_cannot_work_with_sglang_is_refused(
    version: str, preset: str, override: str, message: str, sglang: Callable[[str], None]
) -> None:
    sglang(version)
    overrides = [f"{ROLLOUT}.name=sglang", *([override] if override else [])]
    with pytest.raises(UserError, match=message):
        resolve(preset, overrides, task="vqa", model=None if "model.path" in override else TINY)
