"""The published grounding sets that `data_utils.py convert NAME` reads, one declaration each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

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


_REFCOCO = DataSet(
    "refcoco",
    metric="acc_at_iou_0.5",
    task="grounding",
    question=("expression",),
    mark=("answer",),
    box_format="xywh",
    size="image_size",
    folders=("", "train2014", "images/mscoco/images/train2014"),
    drop=("question", "answer", "iscrowd", "image_size"),
    unfold=layouts.expressions,
)
_SCREENSPOT = DataSet("screenspot", metric="point_in_box", task="grounding", reader=_screenspot)

GROUNDING_SETS: tuple[DataSet, ...] = (
    _REFCOCO,
    replace(_REFCOCO, name="refcoco+"),
    replace(_REFCOCO, name="refcocog"),
    DataSet(
        "visual-genome",
        metric="acc_at_iou_0.5",
        task="grounding",
        question=("phrase",),
        mark=("regions",),
        box_format="xywh",
        folders=("", "VG_100K", "VG_100K_2"),
        unfold=layouts.regions,
    ),
    DataSet(
        "vlm-r1", metric="acc_at_iou_0.5", task="grounding", mark=("conversations", "problem"), unfold=layouts.vlm_r1
    ),
    DataSet(
        "messages-boxes",
        metric="iou",
        task="grounding",
        image=("images", "image"),
        mark=("messages",),
        unfold=layouts.messages_boxes,
    ),
    _SCREENSPOT,
    replace(_SCREENSPOT, name="screenspot-v2"),
    replace(_SCREENSPOT, name="screenspot-pro"),
    DataSet(
        "osworld-g",
        metric="point_in_box",
        task="grounding",
        image=("image", "image_path"),
        question=("instruction",),
        box_format="xywh",
        size="image_size",
        folders=("", "images"),
        unfold=layouts.osworld_g,
    ),
    DataSet(
        "ui-vision",
        metric="point_in_box",
        task="grounding",
        image=("image_path",),
        question=("prompt_to_evaluate",),
        size="image_size",
        file_as="setting",
    ),
    DataSet(
        "mmbench-gui-l2", metric="point_in_box", task="grounding", question=("instruction",), unfold=layouts.mmbench_gui
    ),
    DataSet(
        "venusbench-gd",
        metric="point_in_box",
        task="grounding",
        image=("image_path", "image", "img_filename"),
        question=("instruction",),
        folders=("", "web", "mobile", "desktop"),
        file_as="task_type",
        unfold=layouts.venusbench_gd,
    ),
    DataSet(
        "os-atlas",
        metric="point_in_box",
        task="grounding",
        image=("img_filename",),
        question=("instruction",),
        space="unit",
        folders=("", "images", "imgs"),
        unfold=layouts.elements,
    ),
    DataSet(
        "uground",
        metric="point_in_box",
        task="grounding",
        question=("instruction",),
        mark=("conversations",),
        space="thousand",
        unfold=layouts.uground,
    ),
)
