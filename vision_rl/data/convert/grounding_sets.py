"""The published grounding sets that `data_utils.py convert NAME` reads, one declaration each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vision_rl.data.convert import layouts, screenspot
from vision_rl.data.convert.data_set import DataSet, Source
from vision_rl.data.convert.records import OnBad, Record

_HUB = "https://huggingface.co/datasets/"
_LMMS = "lmms-eval, lmms_eval/tasks/"


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
    title="RefCOCO",
    layout=(
        "the authors' refs(...).p with instances.json (--split val, testA, ...; COCO's train2014); or parquet with "
        "question_id, image, answer (a list of expressions), bbox (x, y, width, height in pixels), file_name"
    ),
    source=f"https://github.com/lichengunc/refer; {_HUB}lmms-lab/RefCOCO; {_LMMS}refcoco/utils_rec.py",
    rows="val 8,811, test 5,000, testA 1,975, testB 1,810 objects",
    metric="acc_at_iou_0.5",
    licence="COCO's terms for the pictures",
    get="download_data.sh refcoco",
    options="--input data/refcoco --split val",
    task="grounding",
    question=("expression",),
    mark=("answer",),
    box_format="xywh",
    size="image_size",
    folders=("", "train2014", "images/mscoco/images/train2014"),
    drop=("question", "answer", "iscrowd", "image_size"),
    unfold=layouts.expressions,
)

_SCREENSPOT = DataSet(
    title="ScreenSpot",
    layout="parquet with file_name, bbox (x1, y1, x2, y2 in 0..1), instruction, data_type, data_source, image",
    source=f"{_HUB}rootsautomation/ScreenSpot",
    rows="test 1,272",
    metric="point_in_box",
    licence="see its card",
    get="download_data.sh screenspot",
    task="grounding",
    reader=_screenspot,
)

GROUNDING_SETS: dict[str, DataSet] = {
    "refcoco": _REFCOCO,
    "refcoco+": replace(
        _REFCOCO,
        title="RefCOCO+",
        source=f"{_HUB}lmms-lab/RefCOCOplus; {_LMMS}refcoco+/utils_rec.py",
        rows="see its card",
        get="download_data.sh refcoco+",
        options="--input data/refcoco+ --split val",
    ),
    "refcocog": replace(
        _REFCOCO,
        title="RefCOCOg",
        source=f"{_HUB}lmms-lab/RefCOCOg; {_LMMS}refcocog/utils_rec.py",
        rows="val 7,573 objects",
        get="download_data.sh refcocog",
        options="--input data/refcocog --split val",
    ),
    "visual-genome": DataSet(
        title="Visual Genome regions",
        layout=(
            "region_descriptions.json: [{id, regions: [{region_id, phrase, x, y, width, height in pixels}]}]; "
            "pictures id.jpg in VG_100K and VG_100K_2"
        ),
        source=f"{_HUB}ranjaykrishna/visual_genome",
        rows="108,077 pictures",
        metric="acc_at_iou_0.5",
        licence="CC BY 4.0",
        get="https://homes.cs.washington.edu/~ranjay/visualgenome/",
        options="--input data/visual-genome/region_descriptions.json",
        task="grounding",
        question=("phrase",),
        mark=("regions",),
        box_format="xywh",
        folders=("", "VG_100K", "VG_100K_2"),
        unfold=layouts.regions,
    ),
    "vlm-r1": DataSet(
        title="VLM-R1's REC files",
        layout=(
            "JSONL with id, image, conversations, or JSON with image, problem, solution; the answer is [x1, y1, "
            "x2, y2] in pixels of the original picture"
        ),
        source="VLM-R1, src/open-r1-multimodal/src/open_r1/grpo_jsonl.py and vlm_modules/qwen_module.py (iou_reward)",
        rows="any",
        metric="acc_at_iou_0.5",
        licence="see its card",
        get=f"{_HUB}omlab/VLM-R1",
        options="--input data/vlm-r1/refcoco_train.jsonl --image-dir data/vlm-r1/images",
        task="grounding",
        mark=("conversations", "problem"),
        unfold=layouts.vlm_r1,
    ),
    "messages-boxes": DataSet(
        title="ms-swift's grounding",
        layout=(
            "JSON, JSONL or parquet with messages (user, assistant), images and objects {ref, bbox, bbox_type}, which "
            "<ref-object> and <bbox> stand for"
        ),
        source="ms-swift, docs: Custom Dataset",
        rows="any",
        metric="iou",
        licence="the set's own",
        get="your own",
        options="--input data/own/train.jsonl",
        task="grounding",
        image=("images", "image"),
        mark=("messages",),
        unfold=layouts.messages_boxes,
    ),
    "screenspot": _SCREENSPOT,
    "screenspot-v2": replace(
        _SCREENSPOT,
        title="ScreenSpot-v2",
        layout=(
            "JSON lists with img_filename, bbox (x, y, width, height in pixels), instruction, data_type, "
            "data_source; pictures in screenspotv2_image"
        ),
        source=f"{_HUB}OS-Copilot/ScreenSpot-v2",
        get="download_data.sh screenspot-v2",
    ),
    "screenspot-pro": replace(
        _SCREENSPOT,
        title="ScreenSpot-Pro",
        layout=(
            "annotations/*.json, one list per application, with img_filename, bbox (x1, y1, x2, y2 in pixels), "
            "img_size, instruction, instruction_cn (--language cn), ui_type, group; pictures in images; other styles of "
            "instructions by --question-field, negative targets by gt_type"
        ),
        source=f"{_HUB}likaixin/ScreenSpot-Pro; its eval_screenspot_pro.py",
        rows="test 1,581",
        get="download_data.sh screenspot-pro",
    ),
    "osworld-g": DataSet(
        title="OSWorld-G",
        layout=(
            "JSON or parquet with id, image_path or image, image_size, instruction, box_type, box_coordinates (x,"
            " y, width, height or a polygon, in pixels), GUI_types"
        ),
        source=f"{_HUB}MMInstruction/OSWorld-G; {_LMMS}osworld_g/utils.py",
        rows="564: 470 boxes, 40 polygons, 54 refusals",
        metric="point_in_box",
        licence="see its card",
        get="download_data.sh osworld-g",
        task="grounding",
        image=("image", "image_path"),
        question=("instruction",),
        box_format="xywh",
        size="image_size",
        folders=("", "images"),
        unfold=layouts.osworld_g,
    ),
    "ui-vision": DataSet(
        title="UI-Vision's element grounding",
        layout=(
            "element_grounding_basic, _functional and _spatial.json: lists with image_path, image_size, "
            "prompt_to_evaluate, bbox (x1, y1, x2, y2 in pixels), platform, element_type"
        ),
        source=f"{_HUB}ServiceNow/ui-vision; https://github.com/uivision/UI-Vision, eval/grounding/eval_uivision.py",
        rows="see its card",
        metric="point_in_box",
        licence="see its card",
        get="download_data.sh ui-vision",
        options="--input data/ui-vision/annotations/element_grounding --image-dir data/ui-vision/images",
        task="grounding",
        image=("image_path",),
        question=("prompt_to_evaluate",),
        size="image_size",
        file_as="setting",
    ),
    "mmbench-gui-l2": DataSet(
        title="MMBench-GUI L2",
        layout=(
            "L2_annotations.json: a list with image_path, platform, instruction, bbox (x1, y1, x2, y2), data_type, "
            "grounding_type (basic or advanced), app_name; pictures in offline_images/PLATFORM"
        ),
        source=f"{_HUB}OpenGVLab/MMBench-GUI; https://github.com/open-compass/MMBench-GUI, l2_element_grounding.py",
        rows="see its card",
        metric="point_in_box",
        licence="see its card",
        get="download_data.sh mmbench-gui-l2",
        options="--input data/mmbench-gui-l2/L2_annotations.json --image-dir data/mmbench-gui-l2/offline_images",
        task="grounding",
        question=("instruction",),
        unfold=layouts.mmbench_gui,
    ),
    "venusbench-gd": DataSet(
        title="VenusBench-GD",
        layout=(
            "instruction/*_grounding.json and refusal_spatial.json: lists with image_path (or image, img_filename), "
            "instruction, bbox (x1, y1, x2, y2 in pixels), platform, ui_element_type; pictures in images/PLATFORM"
        ),
        source=f"{_HUB}inclusionAI/VenusBench-GD; https://github.com/inclusionAI/UI-Venus, branch VenusBench-GD",
        rows="6,166 in English and Chinese",
        metric="point_in_box",
        licence="see its card",
        get="download_data.sh venusbench-gd",
        options="--input data/venusbench-gd/instruction --image-dir data/venusbench-gd/images",
        task="grounding",
        image=("image_path", "image", "img_filename"),
        question=("instruction",),
        folders=("", "web", "mobile", "desktop"),
        file_as="task_type",
        unfold=layouts.venusbench_gd,
    ),
    "os-atlas": DataSet(
        title="OS-Atlas and SeeClick grounding",
        layout=(
            "JSON lists with img_filename, instruction, bbox (x1, y1, x2, y2 in 0..1), data_type; or with a list "
            "of elements per picture"
        ),
        source=f"{_HUB}OS-Copilot/OS-Atlas-data",
        rows="see its card",
        metric="point_in_box",
        licence="Apache 2.0",
        get=f"{_HUB}OS-Copilot/OS-Atlas-data",
        options="--input data/os-atlas/uibert_raw.json --image-dir data/os-atlas/imgs",
        task="grounding",
        image=("img_filename",),
        question=("instruction",),
        space="unit",
        folders=("", "images", "imgs"),
        unfold=layouts.elements,
    ),
    "uground": DataSet(
        title="UGround-V1-Data-Box",
        layout=(
            "parquet with image (bytes), width, height, conversations (JSON text; the answers are (x1, y1, x2, "
            "y2) in 0..1000)"
        ),
        source=f"{_HUB}osunlp/UGround-V1-Data-Box; UGround, README.md",
        rows="see its card",
        metric="point_in_box",
        licence="CC BY-NC-SA 4.0",
        get=f"{_HUB}osunlp/UGround-V1-Data-Box",
        options="--input data/uground/shard_0000.parquet",
        task="grounding",
        question=("instruction",),
        mark=("conversations",),
        space="thousand",
        unfold=layouts.uground,
    ),
}
