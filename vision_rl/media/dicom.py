"""Read a DICOM file as an 8-bit picture by the standard's own pipeline (PS3.3 C.7.6.3, C.11; PS3.4 N.2).

One frame; modality LUT or slope; then the VOI LUT, else the first window by its function, else the percentiles of
`vision_rl.media.images.stretched`. The result is scaled by the range of the LUT or window, never by the picture's own;
padding is black; MONOCHROME1 and PresentationLUTShape INVERSE are inverted. Needs the extra `dicom` (pydicom, Pillow,
python-gdcm). Of the header nothing is kept: the tags that are read are in docs/radiology.md.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_rl.errors import UserError
from vision_rl.files import write_bytes
from vision_rl.media.images import LIMIT_PIXELS, border_of, scaled_grey, stretched

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM_SUFFIXES = (".dcm", ".dicom")
_INSTALL = "pip install 'vision-rl[dicom]'"
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_SQUARE = 0.01
_RULE = b"1"
"""Part of the name of every picture: another number when the rule changes."""


def is_dicom(path: str | Path) -> bool:
    """Whether an existing file is DICOM: by its suffix, or by the mark behind the preamble."""
    if str(path).lower().endswith(DICOM_SUFFIXES):
        return True
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def dicom_png(path: str | Path, directory: Path, frame: int | None = None) -> Path:
    """Write a DICOM file's picture as an 8-bit PNG into `directory` and return its path.

    Its name comes from the file's content and `frame`: what is there already is not made again. Raises `UserError` as
    `dicom_picture` does.
    """
    data = Path(path).read_bytes()
    name = hashlib.sha256(_RULE + str(frame or 0).encode() + data).hexdigest()[:20]
    target = (directory / f"{name}.png").absolute()
    if not target.exists():
        buffer = io.BytesIO()
        dicom_picture(data, str(path), frame).save(buffer, "PNG", compress_level=1)
        write_bytes(target, buffer.getvalue())
    return target


def dicom_picture(data: bytes, where: str, frame: int | None = None) -> Image.Image:
    """The picture (L or RGB) of a DICOM file's bytes; frame: which one of several, from 0.

    Raises `UserError` starting with `where` for a file without pixels, with several frames where none is asked for, with a
    codec that is not installed, too large, or damaged.
    """
    try:
        import pydicom
    except ImportError:
        raise UserError(f"{where} is DICOM, which needs pydicom: {_INSTALL}") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
    warnings.filterwarnings("ignore", module="pydicom")  # of values that break the standard and are not read here
    try:
        header = pydicom.dcmread(io.BytesIO(data), force=True)
        _require_picture(header, where, frame)
        return _picture(header, frame or 0, where)
    except UserError:
        raise
    except Exception as error:  # pydicom and its decoders raise anything on damaged data
        reason = " ".join(str(error).split())
        raise UserError(f"{where} is damaged or incomplete ({reason}); fetch or export it again") from error


def _require_picture(header: Dataset, where: str, frame: int | None) -> None:
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    pixels = any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    if not (pixels and "Rows" in header and "Columns" in header):
        raise UserError(
            f"{where} holds no pixels: it is a report or another object, no DICOM, or cut off before them; remove its row, or "
            "fetch it again"
        )
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1 and frame is None:
        raise UserError(f"{where} has {frames} frames; choose one with --frame (from 0)")
    if frame is not None and not 0 <= frame < frames:
        raise UserError(f"{where} has no frame {frame}; it has {frames}, numbered from 0")
    if int(header.Rows) * int(header.Columns) > LIMIT_PIXELS:
        raise UserError(f"{where} has too many pixels ({header.Columns} x {header.Rows}, limit {LIMIT_PIXELS})")
    syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    if syntax is None or not syntax.is_encapsulated:
        return
    if syntax == JPEGExtended12Bit and header.BitsStored != 8:
        raise UserError(
            f"{where} is {syntax.name} of {header.BitsStored} bits, whose only decoder is under the GPL and not part of this "
            "project; convert it with dcmdjpeg (DCMTK) first"
        )
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UserError(f"{where} is {syntax.name}, which holds no still pictures; export them first") from None
    if not decoder.is_available:
        raise UserError(f"{where} is {syntax.name}, whose codec is not installed: {_INSTALL}")


def _picture(header: Dataset, frame: int, where: str) -> Image.Image:
    from pydicom.pixels import apply_color_lut, pixel_array

    if not hasattr(header, "file_meta") or "TransferSyntaxUID" not in header.file_meta:
        _fill_in_syntax(header)
    values = pixel_array(header, index=frame)
    kind = str(header.PhotometricInterpretation)
    _say_if_not_square(header, where)
    if kind == "PALETTE COLOR":
        values, bits = apply_color_lut(values, header), int(header.RedPaletteColorLookupTableDescriptor[2])
        return Image.fromarray(_eight_bits(values[..., :3], bits))
    if values.ndim == 3:
        if kind not in _COLOURS:
            raise UserError(f"{where} has the colours {kind}, which are not read; export it as RGB")
        return Image.fromarray(_eight_bits(values[..., :3], int(header.BitsStored)))  # RGB, whatever the tag says
    return Image.fromarray(_grey(header, frame, values))


def _fill_in_syntax(header: Dataset) -> None:
    """A file without the meta header, as older archives have them, is uncompressed; its encoding was found on reading."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = header.original_encoding
    header.file_meta = getattr(header, "file_meta", FileMetaDataset())
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _eight_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return (values >> max(0, bits - 8)).clip(0, 255).astype(np.uint8)


def _grey(header: Dataset, frame: int, stored: NDArray[Any]) -> NDArray[np.uint8]:
    """The grey values (height, width) of a frame as 8 bits, black being 0."""
    groups = _functional_groups(header, frame)
    black = _padding(header, stored)
    values = stored
    if sequence := _first(groups, "ModalityLUTSequence"):
        values, _ = _looked_up(header, values, sequence[0])
    else:
        slope, intercept = _number(groups, "RescaleSlope"), _number(groups, "RescaleIntercept")
        if (slope or 1) != 1 or intercept:
            values = values * (slope or 1.0) + (intercept or 0.0)
    width = _number(groups, "WindowWidth")
    if sequence := _first(groups, "VOILUTSequence"):
        values, bits = _looked_up(header, values, sequence[0])
        grey = scaled_grey(values, 0, 2**bits - 1, black)
    elif width is not None and width > 0 and (centre := _number(groups, "WindowCenter")) is not None:
        shares = _windowed(values.astype(np.float64), centre, width, str(_first(groups, "VOILUTFunction") or "LINEAR"))
        grey = scaled_grey(shares, 0, 1, black)
    else:
        black = black | border_of(stored)
        signed = stored.dtype.kind == "i"
        largest = 2 ** (int(header.BitsStored) - signed) - 1 if stored.dtype.kind in "iu" else np.inf
        grey = stretched(values, black, stored == largest)
    if header.PhotometricInterpretation == "MONOCHROME1" or header.get("PresentationLUTShape") == "INVERSE":
        grey = 255 - grey
        grey[black] = 0
    return grey


def _windowed(values: NDArray[np.float64], centre: float, width: float, function: str) -> NDArray[np.float64]:
    """Values as shares of a window (PS3.3 C.11.2.1.2, C.11.2.1.3), not cut off."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return (values - (centre - 0.5)) / (width - 1) + 0.5


def _looked_up(header: Dataset, values: NDArray[Any], item: Dataset) -> tuple[NDArray[Any], int]:
    """Values through a LUT, and the bits of its entries. Values beyond its ends get the end's.

    pydicom's `apply_voi` keeps the place in the LUT in the type of its entries, which runs over at 256 with 8 bits.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count, data = (count & 0xFFFF) or 2**16, item.LUTData
    words = "u1" if len(data) == count else "<u2" if header.original_encoding[1] else ">u2"
    table = np.frombuffer(data, words)[:count] if isinstance(data, bytes) else np.asarray(data)
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)], bits


def _padding(header: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Where stored values are padding (PS3.3 C.7.5.1.1.2): one value, or all up to the range's limit."""
    value, limit = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return np.zeros(stored.shape, np.bool_)
    ends = (value, limit if isinstance(limit, int) else value)
    return (stored >= min(ends)) & (stored <= max(ends))


def _functional_groups(header: Dataset, frame: int) -> list[Dataset]:
    """Where the attributes of a frame stand: in the groups of an enhanced object, those of the frame first, or at the top."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*per_frame[frame : frame + 1], *(header.get("SharedFunctionalGroupsSequence") or [])[:1]]
    inner = [element.value[0] for group in groups for element in group if element.VR == "SQ" and element.value]
    return [*inner, header]


def _first(groups: list[Dataset], name: str) -> Any:
    """The first value of that name that is not empty; None where there is none."""
    values = (group.get(name) for group in groups)
    return next(
        (value for value in values if value is not None and not (hasattr(value, "__len__") and not value)), None
    )


def _number(groups: list[Dataset], name: str) -> float | None:
    """A number, the first of several; None where the tag is absent or empty."""
    value = _first(groups, name)
    return None if value is None else float(value[0] if hasattr(value, "__getitem__") else value)


def _say_if_not_square(header: Dataset, where: str) -> None:
    for name in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"):
        sides = header.get(name)
        if sides and len(sides) == 2 and abs(float(sides[0]) - float(sides[1])) > _SQUARE * float(sides[1]):
            logging.getLogger(__name__).warning(
                "%s: its pixels are not square (%s %s); the picture is on the stored grid, as boxes are",
                where,
                name,
                list(sides),
            )
            return
