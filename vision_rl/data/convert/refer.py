"""RefCOCO, RefCOCO+ and RefCOCOg in their authors' format: a pickle of references beside COCO's instances.json.

https://github.com/lichengunc/refer (refer.py, `__init__`). A pickle is a program: this one is run with no access to any
class or function (`find_class` refuses every name), so that it can make lists, dicts, texts and numbers and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vision_rl.data.convert.json_stream import iter_array
from vision_rl.errors import UserError

INSTANCES = "instances.json"
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError),
    *(MemoryError, RecursionError, ImportError),
)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and a list of references names nothing")


def plain_pickle(path: Path) -> Any:
    """What a pickle of plain values holds. `UserError` for one that names a class or function, and for a damaged one."""
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, encoding="utf-8", errors="replace").load()  # texts of Python 2 are bytes
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check the path") from error
    except _DAMAGE as error:
        raise UserError(
            f"{path} is not a pickle of plain values ({error}); download it again from its authors"
        ) from error


def refer_records(path: Path, split: str) -> Iterator[dict[str, Any]]:
    """One record per reference of a split: its expressions, and picture and box from the instances.json beside the pickle.

    answer: the expressions; bbox: x, y, width, height in pixels; image_size: width, height; split: as the authors name it.
    """
    references, instances = plain_pickle(path), path.parent / INSTANCES
    if not isinstance(references, list) or not all(isinstance(reference, dict) for reference in references):
        raise UserError(
            f"{path} is not a list of references; expected one of refer's refs(unc).p, refs(umd).p, refs(google).p"
        )
    splits = sorted({str(reference.get("split")) for reference in references})
    if split not in splits and (split or len(splits) > 1):
        raise UserError(f"{path} holds the splits {', '.join(splits)}; choose one with --split")
    boxes = {item.get("id"): item.get("bbox") for item in iter_array(instances, "annotations")}
    images = {item.get("id"): item for item in iter_array(instances, "images")}
    for number, reference in enumerate(references):
        if split not in ("", reference.get("split")):
            continue
        try:
            image = images[reference["image_id"]]
            yield {
                "question_id": reference["ref_id"],
                "image": image["file_name"],
                "image_size": [image["width"], image["height"]],
                "answer": [sentence["sent"] for sentence in reference["sentences"]],
                "bbox": boxes[reference["ann_id"]],
                "split": reference["split"],
            }
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}, record {number} is no reference of {instances} ({error!r}); take both files from one download"
            ) from error
