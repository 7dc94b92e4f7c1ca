"""The pictures that vLLM's server keeps decoded: the same as vLLM's own, decoded once, and never an old one."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pictures import ODD_PICTURES, odd_picture
from vision_rl.media.images import open_image, served_unchanged

pytestmark = pytest.mark.slow  # imports vLLM


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes in bytes of what our decoder or vLLM's is given; nothing is kept from before."""
    from vllm.multimodal.media.image import ImageMediaIO

    from vision_rl.serving import vllm_pictures
    from vision_rl.serving.vllm_pictures import KeptImages

    sizes: list[int] = []
    decode, opened = ImageMediaIO.load_bytes, vllm_pictures.open_image

    def counted(self: Any, data: bytes) -> Any:
        sizes.append(len(data))
        return decode(self, data)

    def counted_too(file: Any) -> Any:
        sizes.append(len(file.getvalue()))
        return opened(file)

    monkeypatch.setattr(ImageMediaIO, "load_bytes", counted)
    monkeypatch.setattr(vllm_pictures, "open_image", counted_too)
    KeptImages.load_bytes.cache.clear()
    yield sizes
    KeptImages.load_bytes.cache.clear()


def draw(path: Path, seed: int, size: tuple[int, int] = (96, 64), mode: str = "RGB") -> Path:
    shape = (size[1], size[0], len(mode))
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8), mode).save(path)
    return path


def fetch(root: Path, *urls: str, name: str = "vision_rl", kind: str = "image", **options: Any) -> list[Any]:
    """What vLLM gets for the pictures, asked for at once, each request with a connector of its own as vLLM does it."""
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

    import vision_rl.serving.vllm_pictures  # noqa: F401  # registers the connector

    async def all_of_them() -> list[Any]:
        connectors = [
            MEDIA_CONNECTOR_REGISTRY.load(name, allowed_local_media_path=str(root), media_io_kwargs=options)
            for _ in urls
        ]
        return await asyncio.gather(
            *(getattr(each, f"fetch_{kind}_async")(url) for each, url in zip(connectors, urls, strict=True)),
            return_exceptions=True,
        )

    return asyncio.run(all_of_them())


def test_a_picture_of_a_group_is_decoded_once(tmp_path: Path, decoded: list[int]) -> None:
    path = draw(tmp_path / "a.png", 0)
    by_value = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    pictures = fetch(tmp_path, *[path.as_uri()] * 8, *[by_value] * 8)
    assert len(decoded) == 1 and len({id(picture) for picture in pictures}) == 1
    fetch(tmp_path, path.as_uri())
    assert len(decoded) == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_it_is_what_vllms_own_connector_gives(tmp_path: Path, decoded: list[int], mode: str) -> None:
    path = draw(tmp_path / "a.png", 1, mode=mode)
    [ours], [theirs] = fetch(tmp_path, path.as_uri()), fetch(tmp_path, path.as_uri(), name="http")
    assert np.array_equal(np.asarray(ours.media), np.asarray(theirs.media)) and ours.media.mode == "RGB"
    assert ours.original_bytes == theirs.original_bytes == path.read_bytes()
    assert len(decoded) == 2


@pytest.mark.parametrize("kind", ODD_PICTURES)
def test_the_server_sees_what_the_actor_does(tmp_path: Path, kind: str) -> None:
    """By file, by value, and as frames of a video; stock vLLM where `served_unchanged` says so, and only there."""
    path = odd_picture(kind, tmp_path)
    seen, content = open_image(path), base64.b64encode(path.read_bytes()).decode()
    for url in (path.as_uri(), f"data:image/png;base64,{content}"):
        [got] = fetch(tmp_path, url)
        assert got.media.mode == "RGB" and got.media.tobytes() == seen.tobytes()
    [(frames, _)] = fetch(tmp_path, f"data:video/jpeg;base64,{content},{content}", kind="video")
    assert all(frame.tobytes() == seen.tobytes() for frame in frames) and len(frames) == 2

    [stock] = fetch(tmp_path, path.as_uri(), name="http")
    assert (stock.media.tobytes() == seen.tobytes()) == served_unchanged(path, by_vllm=True)


def test_a_file_that_was_written_anew_is_another_picture(tmp_path: Path, decoded: list[int]) -> None:
    path = draw(tmp_path / "a.png", 2)
    before = os.stat(path)
    [old] = fetch(tmp_path, path.as_uri())
    draw(path, 3)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    [new] = fetch(tmp_path, path.as_uri())
    assert not np.array_equal(np.asarray(old.media), np.asarray(new.media)) and len(decoded) == 2


def test_the_background_of_transparent_pictures_is_the_requests_own(tmp_path: Path, decoded: list[int]) -> None:
    path = draw(tmp_path / "a.png", 4, mode="RGBA")
    [white] = fetch(tmp_path, path.as_uri())
    [black] = fetch(tmp_path, path.as_uri(), image={"rgba_background_color": [0, 0, 0]})
    assert not np.array_equal(np.asarray(white.media), np.asarray(black.media))


def test_what_vllm_refuses_is_refused_each_time(tmp_path: Path, decoded: list[int]) -> None:
    inside, outside = tmp_path / "data", draw(tmp_path / "elsewhere.png", 5)
    inside.mkdir()
    (inside / "broken.png").write_bytes(outside.read_bytes()[:200])
    fetch(tmp_path, outside.as_uri())  # decoded and kept, and yet not for those who may not read it
    broken = (inside / "broken.png").as_uri()
    answers = fetch(inside, outside.as_uri(), broken, broken, "https://example.com/a.png")
    assert all(isinstance(answer, (ValueError, OSError)) for answer in answers[:3]), answers
    assert "subpath" in str(answers[0]) and "load image" in str(answers[1]) and "load image" in str(answers[2])


def test_no_more_is_kept_than_there_is_room_for(
    tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vision_rl.serving.vllm_pictures import KeptImages

    cache: Any = KeptImages.load_bytes.cache
    paths = [draw(tmp_path / f"{seed}.png", seed) for seed in range(6)]
    room = 3 * (96 * 64 * 3 + max(path.stat().st_size for path in paths))
    monkeypatch.setattr(cache, "_Cache__maxsize", room)
    for path in paths:
        fetch(tmp_path, path.as_uri())
    assert len(cache) == 3 and cache.currsize <= room
    [large] = fetch(tmp_path, draw(tmp_path / "large.png", 9, size=(600, 400)).as_uri())
    assert large.media.size == (600, 400) and len(cache) == 3


def test_a_server_of_a_run_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM asks for the connector by name when a request comes, so the name must be set and known in the server's process."""
    import vllm.envs
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

    from vision_rl.serving import vllm_server
    from vision_rl.serving.vllm_pictures import KeptPictures

    seen: list[str] = []
    monkeypatch.setattr(
        vllm_server.vllm_async_server.vLLMHttpServer, "__init__", lambda self, **_: seen.append("begun")
    )
    monkeypatch.setattr(vllm_server, "fork_engine", lambda: None)
    monkeypatch.setattr(vllm_server, "vllm_meets_by_file", lambda: None)
    monkeypatch.setenv("VLLM_MEDIA_CONNECTOR", "http")
    vllm_server.VisionHttpServer(config=None)
    assert seen == ["begun"]
    assert isinstance(MEDIA_CONNECTOR_REGISTRY.load(vllm.envs.VLLM_MEDIA_CONNECTOR), KeptPictures)
