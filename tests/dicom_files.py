"""DICOM files as a test needs them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid


def dicom_bytes(values: NDArray[Any], **tags: Any) -> bytes:
    """The bytes of a grey picture (height, width) of 8 or 16 bits, with further tags by their keywords (None: leave out)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ComputedRadiographyImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = pydicom.Dataset()
    header.file_meta = meta
    bits = values.dtype.itemsize * 8
    known = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "PatientName": "Doe^Jane",
        "PatientID": "P-4711",
        "Rows": values.shape[0],
        "Columns": values.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(values.dtype.kind == "i"),
        "PixelData": values.tobytes(),
    }
    for name, value in (known | tags).items():
        if value is not None:
            setattr(header, name, value)
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write_dicom(path: Path, values: NDArray[Any], **tags: Any) -> Path:
    """`dicom_bytes` in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(values, **tags))
    return path


def radiograph(width: int = 250, height: int = 300, seed: int = 0) -> NDArray[np.uint16]:
    """Two lungs, a spine and noise, in the 12 bits of a detector."""
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    lungs = sum(np.exp(-((x - side) ** 2 / 0.02 + (y - 0.5) ** 2 / 0.08)) for side in (0.3, 0.7))
    noise = np.random.default_rng(seed).normal(0, 40, x.shape)
    values: NDArray[np.uint16] = (3000 - 1800 * lungs + 600 * np.exp(-((x - 0.5) ** 2 / 0.005)) + noise).astype(
        np.uint16
    )
    return values
