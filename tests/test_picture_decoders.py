"""Pictures are opened by Pillow, everywhere: the pinned torchvision's own decoders (CVE-2026-65918) are never reached."""

from __future__ import annotations

import ast
import base64
from pathlib import Path
from typing import Any

import pytest
import torchvision.io
from PIL import Image
from transformers import image_utils
from vllm.multimodal.media import ImageMediaIO

from vision_rl.agent.messages import image_url
from vision_rl.media.images import FORMATS, image_size, open_image
from vision_rl.models.pixels import Pixels

ROOT = Path(__file__).parent.parent
SOURCES = [
    path for path in ROOT.rglob("*.py") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
]


def uses_torchvision_io(tree: ast.AST) -> bool:
    """Whether a module imports torchvision.io or anything of it, or reaches it as an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(name.name.startswith("torchvision.io") for name in node.names):
            return True
        if isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{name.name}" for name in node.names]
            if any(f"{name}.".startswith("torchvision.io.") for name in full):
                return True
        if isinstance(node, ast.Attribute) and node.attr == "io" and getattr(node.value, "id", "") == "torchvision":
            return True
    return False


@pytest.mark.parametrize(
    "code",
    [
        "import torchvision.io",
        "from torchvision import io",
        "from torchvision.io import read_image",
        "torchvision.io.x()",
    ],
)
def test_the_search_finds_each_form(code: str) -> None:
    assert uses_torchvision_io(ast.parse(code))


def test_no_module_of_the_project_uses_it() -> None:
    assert len(SOURCES) > 300
    using = [
        str(path)
        for path in SOURCES
        if path.name != Path(__file__).name and uses_torchvision_io(ast.parse(path.read_bytes()))
    ]
    assert not using


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every function of torchvision that reads or decodes a file raises, also under the names that transformers keeps."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("torchvision.io was reached")

    names = [name for name in dir(torchvision.io) if name.startswith(("decode_", "read_"))]
    assert {"decode_image", "decode_gif", "read_file"} <= set(names)
    for module in (torchvision.io, torchvision.io.image, image_utils):
        for name in names:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, refuse)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.usefixtures("no_decoder")
def test_agent_actor_and_server_open_every_format_without_it(form: str, tmp_path: Path, tiny_processor: Any) -> None:
    file = tmp_path / f"picture.{form.lower()}"
    Image.linear_gradient("L").convert("RGB").save(file, form)
    assert image_size(file) == open_image(file).size == (256, 256)
    assert image_url(str(file), "data").startswith("data:image/")
    assert Pixels(tiny_processor, tmp_path).inputs([file.as_uri()])["pixel_values"].isfinite().all()
    assert ImageMediaIO().load_file(file).media.size == (256, 256)
    content = base64.b64encode(file.read_bytes()).decode()
    assert ImageMediaIO().load_base64(f"image/{form.lower()}", content).media.size == (256, 256)


@pytest.mark.usefixtures("no_decoder")
def test_the_check_would_notice() -> None:
    with pytest.raises(AssertionError, match="was reached"):
        torchvision.io.decode_gif(None)
