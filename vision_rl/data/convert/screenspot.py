"""Read ScreenSpot in its three published forms.

| form | files | box |
| hf | parquet of `rootsautomation/ScreenSpot` with embedded images | xyxy, 0..1 |
| v2 | JSON lists of the original ScreenSpot (SeeClick) and of ScreenSpot-v2, images beside them | xywh, pixels |
| pro | JSON lists of ScreenSpot-Pro, images beside them, or parquet with embedded images | xyxy, pixels |

The fields of a file say which form it has; the size of the numbers never does. There is no published train split.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vision_rl.data.convert.geometry import pixel_box_to_unit
from vision_rl.data.convert.records import (
    OnBad,
    checked,
    converted,
    extra_fields,
    parquet_records,
    read_json,
    source_files,
)
from vision_rl.errors import UserError
from vision_rl.media.images import image_size
from vision_rl.media.picture_files import picture_file

FORMS = ("auto", "hf", "v2", "pro")
_MOBILE = {"ios", "android"}
_DESKTOP = {"macos", "windows"}


def platform_of(data_source: str) -> str:
    """The group of the official tables: ios and android are mobile, macos and windows desktop, all others web."""
    source = data_source.lower()
    return "mobile" if source in _MOBILE else "desktop" if source in _DESKTOP else "web"


def iter_rows(
    source: str | Path,
    *,
    image_dir: str | Path | None,
    extract_dir: str | Path,
    form: str = "auto",
    on_bad: OnBad | None = None,
    language: str = "",
    style: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield schema rows with absolute image paths from a parquet or JSON file, or from a directory of them.

    `image_dir` (default: `images` or `screenspotv2_image` beside the JSON files, or their own directory) holds the
    pictures of the JSON forms; those embedded in a parquet file are written into `extract_dir`. Boxes are clipped to
    the image. A missing picture, a box outside of its image or an item that is in none of the forms goes to `on_bad`,
    or raises `UserError` without one. Of Pro, `language` "cn" takes the Chinese instructions, and `style` the field of
    another style than "instruction"; an item whose gt_type is "negative" has no target.
    """
    asked = _Asked(style or "instruction", "cn" if language.lower() in ("cn", "zh") else "en")
    for file in source_files(Path(source), (("bbox",), ("instruction",), ("image",)), "ScreenSpot"):
        if file.suffix == ".parquet":
            _require(form in ("auto", "hf"), f"{file} is a parquet file, but --form {form} asks for JSON")
            convert = partial(_parquet_row, file, Path(extract_dir), asked)
            yield from converted(parquet_records(file), convert, on_bad)
        else:
            items = read_json(file)
            _require(isinstance(items, list) and bool(items), f"{file} is not a JSON list of annotations")
            yield from converted(
                enumerate(items), partial(_json_row, file, _image_dir(file, image_dir), form, asked), on_bad
            )


def _image_dir(file: Path, image_dir: str | Path | None) -> Path:
    if image_dir is not None:
        return Path(image_dir)
    for base in (file.parent, file.parent.parent):
        for name in ("images", "screenspotv2_image", "screenspot_imgs"):
            if (base / name).is_dir():
                return base / name
    return file.parent


def _parquet_row(file: Path, extract_dir: Path, asked: _Asked, numbered: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    number, item = numbered
    if "ui_type" in item or "img_size" in item:  # Pro, with its pictures inside
        return _json_row(file, extract_dir, "pro", asked, numbered)
    where = f"{file}, row {number}"
    missing = {"bbox", "instruction", "image"} - item.keys()
    _require(not missing, f"{where} has no {', '.join(sorted(missing))}; it is not ScreenSpot's parquet form")
    box = _numbers(item["bbox"], where)
    inside = all(-0.01 <= value <= 1.01 for value in box)
    _require(inside, f"{where}: bbox {box} is not in 0..1; take the file from rootsautomation/ScreenSpot")
    image = picture_file(item["image"], extract_dir, extract_dir, where)
    unit = pixel_box_to_unit(box, (1, 1), where)
    return checked(_row(item, f"{file.stem}-{number}", image, image_size(image), unit, "screenspot"), where)


class _Asked(NamedTuple):
    """Which of ScreenSpot-Pro's instructions: eval_screenspot_pro.py has styles, and Chinese for the plain one."""

    style: str
    language: str

    @property
    def field(self) -> str:
        return self.style + ("_cn" if self.language == "cn" else "")


def _json_row(file: Path, image_dir: Path, form: str, asked: _Asked, numbered: tuple[int, Any]) -> dict[str, Any]:
    number, item = numbered
    where = f"{file}, item {number}"
    _require(isinstance(item, dict), f"{where} is not an object; it is not ScreenSpot's JSON form")
    none = item.get("gt_type") == "negative"
    picture = "image" if "image" in item else "img_filename"
    missing = {picture, asked.field, *(() if none else ("bbox",))} - item.keys()
    _require(not missing, f"{where} has no {', '.join(sorted(missing))}; it is not ScreenSpot's JSON form")
    is_pro = ("ui_type" in item or "img_size" in item) if form == "auto" else form == "pro"
    image = picture_file(item[picture], image_dir, image_dir, where)
    size = image_size(image)
    said = item.get("img_size")
    if is_pro and said:
        _require(said == list(size), f"{where}: img_size {said} but {image} is {list(size)}; download the image again")
    identity = str(item.get("id", f"{file.stem}-{number}"))
    unit = None
    if not none:
        box = _numbers(item["bbox"], where)
        if not is_pro:
            box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
        unit = pixel_box_to_unit(box, size, where)
    row = _row({**item, "instruction": item[asked.field]}, identity, image, size, unit, _source_name(file, is_pro))
    if is_pro:
        kind = {
            "instruction_style": asked.style,
            "language": asked.language,
            "gt_type": item.get("gt_type", "positive"),
        }
        row["meta"] |= kind
    return checked(row, where)


def _source_name(file: Path, is_pro: bool) -> str:
    return "screenspot-pro" if is_pro else "screenspot-v2" if "v2" in file.stem else "screenspot"


def _row(
    item: dict[str, Any], identity: str, image: Path, size: tuple[int, int], box: list[float] | None, source: str
) -> dict[str, Any]:
    meta = extra_fields(item, ("image", "bbox", "instruction", "instruction_cn", "id"))
    # Pro calls the element's kind ui_type and its system platform: the official breakdown's names are added to them.
    meta.setdefault("data_type", item.get("ui_type", ""))
    meta.setdefault("data_source", item.get("platform", ""))
    if source != "screenspot-pro":
        meta["platform"] = platform_of(str(meta["data_source"]))
    return {
        "id": identity,
        "task": "grounding",
        "metric": "point_in_box",
        "image_paths": [str(image)],
        "question": item["instruction"],
        "boxes": [] if box is None else [box],
        "labels": [] if box is None else [str(meta["data_type"])],
        "image_sizes": [list(size)],
        "source": source,
        "meta": meta,
    }


def _numbers(value: Any, where: str) -> list[float]:
    good = isinstance(value, (list, tuple)) and len(value) == 4 and all(type(n) in (int, float) for n in value)
    _require(good, f"{where}: bbox {value!r} is not four numbers")
    return [float(number) for number in value]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
