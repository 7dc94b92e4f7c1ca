from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.data_samples import picture
from tests.dicom_files import radiograph
from tests.pictures import ODD_PICTURES, no_size, odd_picture
from vision_rl.agent import messages
from vision_rl.agent.messages import image_url, sent_file
from vision_rl.errors import UserError
from vision_rl.media.images import image_size, open_image, pixel_hash, served_unchanged


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 10, 20))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored lying, to be turned by 90 degrees clockwise
    path = save(image, tmp_path / "a.png", exif=exif)
    opened = open_image(path)
    assert opened.size == image_size(path) == (20, 40)
    assert opened.getpixel((10, 2)) == (255, 0, 0)
    assert opened.getpixel((10, 38)) == (0, 0, 255)
    assert not served_unchanged(path)


def test_sixteen_bit_grey_is_stretched(tmp_path: Path) -> None:
    values = np.array([[0, 1024], [2048, 4095]], dtype=np.uint16)  # a 12-bit radiograph
    path = save(Image.fromarray(values), tmp_path / "a.png")
    assert np.asarray(open_image(path))[..., 0].tolist() == [[0, 64], [128, 255]]
    assert not served_unchanged(path)
    flat = save(Image.fromarray(np.full((3, 3), 700, dtype=np.uint16)), tmp_path / "b.png")
    assert np.asarray(open_image(flat)).max() == 0
    floats = save(Image.fromarray(np.array([[0.0, 0.75, 1.0]], dtype=np.float32)), tmp_path / "c.tif")
    assert np.asarray(open_image(floats))[0, :, 0].tolist() == [0, 191, 255]


@pytest.mark.parametrize(
    ("places", "value", "ends"),
    [
        ([], 0, None),
        ([np.s_[7, 9]], 65535, 255),  # a hot pixel
        ([np.s_[20:60, 20:80]], 65535, 255),  # a burnt-in marker
        ([np.s_[:40]], 0, 0),  # padding
        ([np.s_[-40:], np.s_[:, :30]], 9000, 0),  # padding of any one value, on two sides
        ([np.s_[:40]], 65535, 0),
        ([np.s_[:, -2:]], 31, 0),
    ],
)
def test_markers_and_padding_leave_a_radiograph_its_grey_levels(
    places: list[Any], value: int, ends: int | None, tmp_path: Path
) -> None:
    values, marked = radiograph(), np.zeros((300, 250), np.bool_)
    clean = np.asarray(open_image(save(Image.fromarray(values), tmp_path / "clean.png")))[..., 0]
    for place in places:
        values[place], marked[place] = value, True
    path = save(Image.fromarray(values), tmp_path / "marked.png")
    grey = np.asarray(open_image(path))[..., 0]
    assert len(np.unique(grey)) > 190
    assert np.abs(grey[~marked].astype(int) - clean[~marked]).max() <= 3, "the rest looks as it does without"
    assert set(np.unique(grey[marked])) <= {ends}
    sent = io.BytesIO(base64.b64decode(image_url(str(path), "file").partition(",")[2]))
    assert open_image(sent).tobytes() == open_image(path).tobytes(), "a server sees what the trainer does"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    image = image.convert(mode)
    path = save(image, tmp_path / "a.png")
    opened = open_image(path)
    assert opened.mode == "RGB"
    assert opened.getpixel((0, 0)) == (0, 0, 0)
    assert opened.getpixel((3, 3)) == (255, 255, 255)
    assert served_unchanged(path) == (mode == "RGBA")


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_image(path).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "CMYK"])
def test_other_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    path = save(Image.new("RGB", (16, 16), "white").convert(mode), tmp_path / "a.tif")
    opened = open_image(path)
    assert opened.mode == "RGB"
    assert min(opened.getpixel((8, 8))) >= 254  # type: ignore[arg-type, type-var]
    assert served_unchanged(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_what_is_served_unchanged_is_what_a_plain_loader_sees(mode: str, tmp_path: Path) -> None:
    """The plain loader is that of vLLM's ImageMediaIO: white below RGBA, `convert("RGB")` for all else."""
    image = picture((32, 24), 1).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    path = save(image, tmp_path / "a.tif")
    assert served_unchanged(path)
    with Image.open(path) as plain:
        if plain.mode == "RGBA":
            expected = Image.new("RGB", plain.size, (255, 255, 255))
            expected.paste(plain, mask=plain.split()[3])
        else:
            expected = plain.convert("RGB")
    assert open_image(path).tobytes() == expected.tobytes()


def test_sixteen_bit_would_not_be_served_unchanged(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.array([[0, 2000, 4000]], dtype=np.uint16)), tmp_path / "a.png")
    with Image.open(path) as plain:
        assert plain.convert("RGB").tobytes() != open_image(path).tobytes()


@pytest.mark.parametrize("kind", ODD_PICTURES)
def test_what_is_sent_is_what_every_loader_sees(kind: str, tmp_path: Path) -> None:
    """By Pillow alone, without a look at rotation or transparency. A JPEG that is written again may be off by its rounding."""
    path = odd_picture(kind, tmp_path)
    seen = open_image(path)
    mime, content = sent_file(str(path))
    with Image.open(io.BytesIO(content)) as plain:
        assert mime == f"image/{plain.format}".lower() and plain.format in ("PNG", "JPEG")
        assert (plain.mode == "RGBA") == (kind == "RGBA"), "white below RGBA is what every server knows"
        if kind != "RGBA":
            off = np.abs(np.asarray(plain.convert("RGB")).astype(int) - np.asarray(seen))
            assert plain.size == seen.size and off.mean() < (1 if "JPEG" in kind else 1e-9)
    assert image_url(str(path), "data") == f"data:{mime};base64,{base64.b64encode(content).decode()}"
    by_name = image_url(str(path), "file") == path.as_uri()
    assert (
        by_name
        == served_unchanged(path, by_vllm=True)
        == (not ("bit" in kind or "float" in kind or "RGB with" in kind))
    )


def test_a_large_rotated_photo_is_written_anew_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    path = tmp_path / "photo.jpg"
    Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC).save(path, quality=90, exif=exif)
    opened: list[object] = []
    monkeypatch.setattr(messages, "open_image", lambda file: (opened.append(file), open_image(file))[1])  # type: ignore[func-returns-value]
    assert image_url(str(path), "file") == path.as_uri() and not opened
    sent = [image_url(str(path), "data") for _ in range(3)]
    assert len(opened) == 1 and len(set(sent)) == 1
    assert len(sent[0]) < 4 * path.stat().st_size, "as a PNG it has ten times the size of the file"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.png", None, "does not exist"),
        ("empty.png", b"", "0 bytes"),
        ("text.png", b"hello", "known format"),
        ("page.html", b"<html>404</html>", "known format"),
        ("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "known format"),
        ("dicom.dcm", b"\0" * 128 + b"DICM", "known format"),
    ],
)
def test_refused_with_the_file_name(name: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        open_image(tmp_path / name)
    assert name in str(caught.value)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a file"):
        open_image(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_truncated_and_corrupt_files_are_user_errors(form: str, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, format=form)
    whole = buffer.getvalue()
    path = tmp_path / "cut.img"
    refused = 0
    for cut in [*range(1, 60), *range(60, len(whole) - 8, max(1, len(whole) // 60))]:
        path.write_bytes(whole[:cut])
        try:
            open_image(path)
        except UserError as error:
            assert "cut.img" in str(error)
            refused += 1
    assert refused >= (40 if form == "GIF" else 100)
    rng = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 200), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            open_image(path, limit_pixels=10_000_000)
        except UserError as error:
            assert "cut.img" in str(error)


def test_a_large_part_of_a_picture_must_not_be_missing(tmp_path: Path) -> None:
    path = save(picture((200, 200), 3), tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(UserError, match=r"a\.jpg is damaged or incomplete"):
        open_image(path)


def test_pixel_limit(tmp_path: Path) -> None:
    path = save(Image.new("1", (2000, 1000)), tmp_path / "a.png")
    assert open_image(path, limit_pixels=2_000_000).size == (2000, 1000)
    for function in (open_image, image_size):
        with pytest.raises(UserError, match=r"a\.png has too many pixels"):
            function(path, limit_pixels=1_999_999)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = save(Image.new("1", (14_000, 14_000)), tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb\.png has too many pixels"):
        open_image(path)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "allowed"), [((30_000, 30_000), False), ((30_000, 20), True), ((20, 30_000), True)])
def test_thirty_thousand_pixels_a_side(size: tuple[int, int], allowed: bool, tmp_path: Path) -> None:
    """What counts is the area: a tall screenshot of a whole page is a picture like others."""
    path = save(Image.new("1", size), tmp_path / "a.png")
    for function in (open_image, image_size):
        if allowed:
            assert getattr(found := function(path), "size", found) == size
        else:
            with pytest.raises(UserError, match=r"a\.png has too many pixels"):
                function(path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF"])
def test_a_picture_of_no_size_is_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(no_size(form))
    for function in (open_image, image_size):
        with pytest.raises(UserError, match=r"a\.img is not a picture in a known format"):
            function(path)


def test_pixel_hash_is_of_content_not_of_the_file(tmp_path: Path) -> None:
    image = picture((30, 20), 5)
    one = save(image, tmp_path / "a.png")
    two = save(image, tmp_path / "b.bmp")
    assert pixel_hash(open_image(one)) == pixel_hash(open_image(two))
    assert pixel_hash(open_image(one)) != pixel_hash(picture((30, 20), 6))
    assert pixel_hash(Image.new("RGB", (2, 8))) != pixel_hash(Image.new("RGB", (4, 4)))
