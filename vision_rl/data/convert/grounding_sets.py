"""The published grounding sets that `data_utils.py convert NAME` reads, one declaration each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from vision_rl.data.convert import layouts, screenspot
from vision_rl.data.convert.data_set import DataSet, Source
from vision_rl.data.convert.records import OnBad, Record


def _screenspot(source: Source, on_bad: OnBad | None) -> Iterator[Record]:
    return screenspot.iter_rows(
        source.path,
        image_dir=source.image_dir,
        extract_dir=source.extract_dir,
        on_bad=on_bad,
        language=source.language,
        style=source.question_field,
    )


_grounding = partial(DataSet, task="grounding")
_pointing = partial(_grounding, metric="point_in_box")

_REFCOCO = _grounding(
    "refcoco",
    metric="acc_at_iou_0.5",
    question=("expression",),
    mark=("answer",),
    box_format="xywh",
    size="image_size",
    folders=("", "train2014", "images/mscoco/images/train2014"),
    drop=("question", "answer", "iscrowd", "image_size"),
    unfold=layouts.expressions,
)
_SCREENSPOT = _pointing("screenspot", reader=_screenspot)

GROUNDING_SETS: tuple[DataSet, ...] = (
    _REFCOCO,
    replace(_REFCOCO, name="refcoco+"),
    replace(_REFCOCO, name="refcocog"),
    _grounding(
        "visual-genome",
        metric="acc_at_iou_0.5",
        question=("phrase",),
        mark=("regions",),
        box_format="xywh",
        folders=("", "VG_100K", "VG_100K_2"),
        unfold=layouts.regions,
    ),
    _grounding("vlm-r1", metric="acc_at_iou_0.5", mark=("conversations", "problem"), unfold=layouts.vlm_r1),
    _grounding(
        "messages-boxes", metric="iou", image=("images", "image"), mark=("messages",), unfold=layouts.messages_boxes
    ),
    _SCREENSPOT,
    replace(_SCREENSPOT, name="screenspot-v2"),
    replace(_SCREENSPOT, name="screenspot-pro"),
    _pointing(
        "osworld-g",
        image=("image", "image_path"),
        question=("instruction",),
        box_format="xywh",
        size="image_size",
        folders=("", "images"),
        unfold=layouts.osworld_g,
    ),
    _pointing(
        "ui-vision", image=("image_path",), question=("prompt_to_evaluate",), size="image_size", file_as="setting"
    ),
    _pointing("mmbench-gui-l2", question=("instruction",), unfold=layouts.mmbench_gui),
    _pointing(
        "venusbench-gd",
        image=("image_path", "image", "img_filename"),
        question=("instruction",),
        folders=("", "web", "mobile", "desktop"),
        file_as="task_type",
        unfold=layouts.venusbench_gd,
    ),
    _pointing(
        "os-atlas",
        image=("img_filename",),
        question=("instruction",),
        space="unit",
        folders=("", "images", "imgs"),
        unfold=layouts.elements,
    ),
    _pointing("uground", question=("instruction",), mark=("conversations",), space="thousand", unfold=layouts.uground),
)
