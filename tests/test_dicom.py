"""DICOM to 8 bits: every value of pydicom's own files against the rule, and what is refused."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data_store
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_windowing, pixel_array
from pydicom.uid import MPEG2MPML, UID, JPEG2000Lossless, JPEGExtended12Bit, JPEGLossless

from tests.dicom_files import dicom_bytes, radiograph, write_dicom
from vision_rl.errors import UserError
from vision_rl.media.dicom import dicom_picture
from vision_rl.media.images import border_of
from vision_rl.media.picture_files import picture_file

RAMP = np.arange(0, 4096, dtype=np.uint16).reshape(64, 64)


def grey(values: NDArray[Any], frame: int | None = None, **tags: Any) -> NDArray[np.uint8]:
    return np.asarray(dicom_picture(dicom_bytes(values, **tags), "x.dcm", frame))


def lut(entries: list[int], first: int, bits: int, as_bytes: str = "") -> list[pydicom.Dataset]:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "OW" if as_bytes else "US", np.array(entries, as_bytes).tobytes() if as_bytes else entries)
    return [item]


WINDOW = {"WindowCenter": [1000, 3000], "WindowWidth": [500, 10]}
ENHANCED = pydicom.Dataset()
ENHANCED.FrameVOILUTSequence = [pydicom.Dataset()]
ENHANCED.FrameVOILUTSequence[0].WindowCenter, ENHANCED.FrameVOILUTSequence[0].WindowWidth = 128, 256


@pytest.mark.parametrize(
    ("tags", "stored", "shown"),
    [
        # The first window by its function (PS3.3 C.11.2.1.2): its ends are not those of the picture.
        (WINDOW, [750, 1000, 1250], [0, 128, 255]),
        (WINDOW | {"VOILUTFunction": "LINEAR_EXACT"}, [750, 875, 1250], [0, 64, 255]),
        (WINDOW | {"VOILUTFunction": "SIGMOID"}, [0, 1000, 1500], [0, 128, 250]),
        ({"WindowCenter": 1000, "WindowWidth": 1}, [999, 1000], [0, 255]),
        ({"WindowCenter": 2000, "WindowWidth": 16384}, [0, 4000], [96, 159]),
        # Slope and intercept come before it, and an empty tag is an absent one.
        (WINDOW | {"RescaleSlope": 2, "RescaleIntercept": -1000}, [875, 1000, 1125], [0, 128, 255]),
        (WINDOW | {"RescaleSlope": "", "RescaleIntercept": ""}, [750, 1000, 1250], [0, 128, 255]),
        # A VOI LUT comes before windows; more entries than its bits can count; values beyond its ends get the end's.
        (WINDOW | {"VOILUTSequence": lut([0, 51, 102, 255], 1000, 8)}, [0, 1001, 1002, 4095], [0, 51, 102, 255]),
        ({"VOILUTSequence": lut([0] * 600 + [255] * 400, 0, 8)}, [599, 600, 999], [0, 255, 255]),
        ({"VOILUTSequence": lut([0, 2048, 4095], 7, 12)}, [7, 8, 9], [0, 128, 255]),
        ({"VOILUTSequence": lut([0, 2048, 4095], 7, 12, "<u2")}, [7, 8, 9], [0, 128, 255]),
        ({"VOILUTSequence": lut([0, 51, 102, 255], 7, 8, "u1")}, [7, 8, 11], [0, 51, 255]),
        ({"ModalityLUTSequence": lut([750, 1250], 2000, 16)} | WINDOW, [2000, 2001], [0, 255]),
        # Inverted after that; padding stays black and out of the range.
        (WINDOW | {"PhotometricInterpretation": "MONOCHROME1"}, [750, 1000, 1250], [255, 127, 0]),
        (WINDOW | {"PresentationLUTShape": "INVERSE"}, [750, 1250], [255, 0]),
        (WINDOW | {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0}, [0, 1, 1250], [0, 255, 0]),
        (
            WINDOW | {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000},
            [1250, 3999, 4000, 4095],
            [255, 255, 0, 0],
        ),
        # Without LUT and window: the percentiles, 4095 being the largest value of 12 bits.
        ({"BitsStored": 12, "HighBit": 11}, [20, 2047, 4075], [0, 128, 255]),
        (
            {"BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": "MONOCHROME1"},
            [20, 2047, 4075],
            [255, 127, 0],
        ),
    ],
)
def test_a_grey_value_by_the_rule(tags: dict[str, Any], stored: list[int], shown: list[int]) -> None:
    picture = grey(RAMP, **tags).ravel()
    assert np.abs(picture[stored].astype(int) - shown).max() <= 1, picture[stored]


def test_several_frames_need_a_choice_and_keep_their_own_window() -> None:
    frames = np.stack([np.full((4, 4), 10), np.full((4, 4), 128)]).astype(np.uint8)
    tags = {"NumberOfFrames": 2, "Rows": 4, "SharedFunctionalGroupsSequence": [ENHANCED]}
    data = dicom_bytes(frames[0], **tags | {"PixelData": frames.tobytes()})
    with pytest.raises(UserError, match=r"x.dcm has 2 frames; choose one with --frame \(from 0\)"):
        dicom_picture(data, "x.dcm")
    with pytest.raises(UserError, match="no frame 2"):
        dicom_picture(data, "x.dcm", 2)
    assert [np.asarray(dicom_picture(data, "x.dcm", frame))[0, 0] for frame in (0, 1)] == [10, 128]


def own_files() -> Iterator[Path]:
    """pydicom's and pydicom-data's files of a picture, whatever they lack or break."""
    for module in (pydicom, data_store):
        for path in sorted((Path(str(module.__file__)).parent / "data").rglob("*")):
            if path.is_file() and path.suffix not in (".py", ".json", ".txt", ".gz", ".zip", ".pyc"):
                header = pydicom.dcmread(path, force=True)
                if "Rows" in header and "PixelData" in header:
                    yield path


REFUSED = {
    "JPEG-lossy.dcm": "12 bits",
    "JPGExtended.dcm": "12 bits",
    "JPEG2000-embedded-sequence-delimiter.dcm": "damaged or incomplete",
    "MR_truncated.dcm": "less than expected",
    "badVR.dcm": "damaged or incomplete",
}


def by_the_rule(header: pydicom.Dataset, frame: int) -> NDArray[Any] | None:
    """The grey values as pydicom's own helpers give them, brought to 0..255; None where it has none that are right."""
    stored = pixel_array(header, index=frame)
    if stored.ndim == 3 or header.PhotometricInterpretation == "PALETTE COLOR":
        return None
    if "VOILUTSequence" in header or "PerFrameFunctionalGroupsSequence" in header:
        return None
    values, black = stored, stored == header.get("PixelPaddingValue")
    if header.get("RescaleSlope") is not None or "ModalityLUTSequence" in header:
        values = apply_modality_lut(values, header)
    if header.get("WindowWidth") and header.get("WindowCenter"):
        half, signed = 2 ** (header.BitsStored - 1), header.PixelRepresentation
        ends = np.array([-half, half - 1] if signed else [0, 2 * half - 1])
        ends = ends * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
        shares = (apply_windowing(values, header) - ends[0]) / (ends[1] - ends[0])
    else:
        black = black | border_of(stored)
        inside = values[(stored != 2 ** (header.BitsStored - header.PixelRepresentation) - 1) & ~black]
        low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0, 0)
        low, high = (low, high) if high > low else (values[~black].min(), values[~black].max())
        shares = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros(values.shape)
    shares = 1 - shares if header.PhotometricInterpretation == "MONOCHROME1" else shares
    return 255 * np.where(black, 0, shares)


@pytest.mark.slow
def test_pydicoms_own_files(caplog: pytest.LogCaptureFixture) -> None:
    """Read by the rule, or refused with the sentence that is expected, and no other."""
    caplog.set_level(logging.CRITICAL)
    read = compared = 0
    refused = {}
    for path in own_files():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, force=True)
            frame = 0 if "NumberOfFrames" in header else None
            try:
                picture = dicom_picture(path.read_bytes(), path.name, frame)
            except UserError as error:
                refused[path.name] = str(error)
                continue
            read += 1
            assert picture.size == (header.Columns, header.Rows)
            expected = by_the_rule(header, frame or 0) if hasattr(header.file_meta, "TransferSyntaxUID") else None
        if expected is None:
            continue
        compared += 1
        assert np.abs(np.asarray(picture).astype(float) - expected).max() <= 1, path.name
    assert refused.keys() == REFUSED.keys()
    for name, reason in REFUSED.items():
        assert reason in refused[name] and "\n" not in refused[name]
    assert read >= 167 and compared >= 92


@pytest.mark.parametrize(
    "name", ["SC_rgb.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_ybr_full_422_uncompressed.dcm"]
)
def test_red_stays_red(name: str) -> None:
    path = pydicom.data.get_testdata_file(name)
    picture = np.asarray(dicom_picture(Path(str(path)).read_bytes(), name)).astype(int)
    assert np.abs(picture[5, 50] - [255, 0, 0]).max() <= 5 and np.abs(picture[25, 50] - [0, 255, 0]).max() <= 5


def test_a_palette_has_sixteen_bits() -> None:
    path = pydicom.data.get_testdata_file("examples_palette.dcm")
    picture = np.asarray(dicom_picture(Path(str(path)).read_bytes(), "x"))
    assert picture.shape[2] == 3 and picture.dtype == np.uint8 and len(np.unique(picture)) > 50


def without_pixels() -> bytes:
    return dicom_bytes(RAMP, PixelData=None)


def of_syntax(syntax: str) -> bytes:
    header = pydicom.dcmread(io.BytesIO(dicom_bytes(RAMP)))
    header.file_meta.TransferSyntaxUID = UID(syntax)
    header.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no such picture \xff\xd9"])
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (without_pixels(), "x.dcm holds no pixels"),
        (dicom_bytes(RAMP)[:-100], "damaged or incomplete"),
        (dicom_bytes(RAMP)[:300], "holds no pixels: .* or cut off"),
        (b"<html>404</html>", "holds no pixels: .* no DICOM"),
        (b"", "holds no pixels"),
        (of_syntax(JPEGExtended12Bit), "12|16 bits, whose only decoder is under the GPL"),
        (of_syntax(MPEG2MPML), "no still pictures"),
        (of_syntax(JPEGLossless), "damaged or incomplete"),
        (dicom_bytes(RAMP, Rows=30000, Columns=30000), "too many pixels"),
    ],
)
def test_bad_files_are_one_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        dicom_picture(data, "x.dcm")
    assert "\n" not in str(caught.value)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = pydicom.pixels.get_decoder(JPEG2000Lossless)
    monkeypatch.setattr(type(decoder), "is_available", property(lambda self: False))
    with pytest.raises(UserError, match=r"JPEG 2000.* codec is not installed: pip install 'vision-rl\[dicom\]'"):
        dicom_picture(of_syntax(JPEG2000Lossless), "x.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"needs pydicom: pip install 'vision-rl\[dicom\]'"):
        dicom_picture(dicom_bytes(RAMP), "x.dcm")


def test_pixels_that_are_not_square_are_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Frameworks that other tests of the process import may have disabled loggers, or raised levels, by a configuration of theirs.
    logger = logging.getLogger("vision_rl.media.dicom")
    monkeypatch.setattr(logger, "disabled", False)
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logging.getLogger("vision_rl"), "propagate", True)
    logging.disable(logging.NOTSET)
    caplog.set_level(logging.WARNING, logger=logger.name)
    assert grey(RAMP, PixelSpacing=[0.2, 0.1]).shape == (64, 64)
    assert caplog.text.count("not square") == 1


@pytest.mark.parametrize("name", ["a.dcm", "a.dicom", "a"])
def test_a_record_finds_its_dicom_and_no_patient_data_travels(name: str, tmp_path: Path) -> None:
    write_dicom(tmp_path / "in" / name, radiograph())
    found = picture_file("a" if name != "a" else name, tmp_path / "in", tmp_path / "out", "x.csv, record 0")
    assert found.parent == tmp_path / "out" and found.suffix == ".png"
    before = found.stat().st_mtime_ns
    assert (
        picture_file(name, tmp_path / "in", tmp_path / "out", "x").samefile(found)
        and found.stat().st_mtime_ns == before
    )
    with Image.open(found) as picture:
        assert picture.mode == "L" and picture.size == (250, 300) and not picture.info
    for kept in (found.read_bytes(), found.name.encode()):
        assert b"Doe" not in kept and b"4711" not in kept


def test_a_picture_that_is_not_there_is_named_with_its_endings(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"x.csv, record 3: .*/gone does not exist, nor with .*\.dcm, \.dicom behind it"
    ):
        picture_file("gone", tmp_path, tmp_path, "x.csv, record 3")
