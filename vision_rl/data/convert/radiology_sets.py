"""The published radiology sets that `data_utils.py convert NAME` reads, one declaration each; docs/radiology.md is their page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vision_rl.data.convert import box_sets
from vision_rl.data.convert import radiology_layouts as layouts
from vision_rl.data.convert.box_sets import BoxOptions
from vision_rl.data.convert.data_set import DataSet, Source
from vision_rl.data.convert.records import OnBad, Record, source_files

_PHYSIONET = "PhysioNet account with a signed agreement"
_CREDENTIALED = "PhysioNet Credentialed Health Data License"
_ALL_FINDINGS = "Locate every finding in this image. The findings looked for are: {labels}."


def _boxes(
    unfold: Callable[[Source], layouts.Unfold] | None = None,
    *,
    marks: tuple[str, ...] = ("image_id",),
    nested: bool = False,
    question: str = _ALL_FINDINGS,
    **options: Any,
) -> Callable[[Source, OnBad | None], Iterator[Record]]:
    """A reader of tables of boxes. marks: see `source_files`; nested: pictures lie in folders that the table does not name.

    options: of `BoxOptions`. A file whose records name their split needs --split if they are of several.
    """

    def read(source: Source, on_bad: OnBad | None) -> Iterator[Record]:
        own = unfold(source) if unfold else lambda record: [record]
        places = (
            {file.stem: str(file.absolute()) for file in source.directory.rglob("*") if file.is_file()}
            if nested
            else {}
        )

        def placed(record: Record) -> Iterator[Record]:
            for flat in own(record):
                name = str(flat.get("image", ""))
                stem = name.rsplit(".", 1)[0] if name.lower().endswith((".png", ".jpg", ".dcm")) else name
                yield flat | ({"image": places[stem]} if stem in places else {})

        named = {"image_field": source.image_field, "question_field": source.question_field}
        chosen = BoxOptions(
            image_dir=source.directory,
            extract_dir=source.extract_dir,
            source=source.name,
            metric="iou",
            frame=source.frame,
            readers=source.readers or "fuse",
            split=source.split if options.get("split_column") else "",
            question=source.question or question,
            unfold=placed,
            **{"space": "pixels"} | options | {name: value for name, value in named.items() if value},
        )
        split = "" if chosen.split else source.split
        for file in source_files(source.path, (marks,), source.name, split):
            yield from box_sets.iter_rows(file, chosen, on_bad=on_bad)

    return read


RADIOLOGY_SETS: dict[str, DataSet] = {
    "vindr-cxr": DataSet(
        title="VinDr-CXR",
        layout="CSV with image_id, class_name, rad_id (three readers each), x_min, y_min, x_max, y_max in pixels; DICOM or PNG",
        source="https://physionet.org/content/vindr-cxr/",
        rows="15,000 pictures for training, 3,000 for testing",
        metric="iou",
        licence=_CREDENTIALED,
        get="https://physionet.org/content/vindr-cxr/",
        options="--input data/vindr-cxr/annotations/annotations_train.csv --image-dir data/vindr-cxr/train",
        account=f"{_PHYSIONET}, or a Kaggle account (vinbigdata-chest-xray-abnormalities-detection)",
        task="grounding",
        reader=_boxes(),
    ),
    "ms-cxr": DataSet(
        title="MS-CXR",
        layout=(
            "CSV with dicom_id, category_name, label_text, path, x, y, w, h in pixels of image_width, image_height, split; "
            "or COCO JSON with path in images and label_text in annotations"
        ),
        source="https://physionet.org/content/ms-cxr/",
        rows="1,162 sentences with boxes",
        metric="iou",
        licence=_CREDENTIALED,
        get="https://physionet.org/content/ms-cxr/",
        options=("--input data/ms-cxr/MS_CXR_Local_Alignment_v1.1.0.json --image-dir data/mimic-cxr-jpg"),
        account=f"{_PHYSIONET}, for it and for MIMIC-CXR-JPG",
        task="grounding",
        reader=_boxes(
            layouts.ms_cxr,
            marks=("label_text",),
            image_field="path",
            question_field="label_text",
            split_column=True,
        ),
    ),
    "padchest-gr": DataSet(
        title="PadChest-GR",
        layout=(
            "grounded_reports_*.json: StudyID, ImageID, findings (sentence_en, sentence_es, boxes x1, y1, x2, y2 in 0..1, "
            "labels); master_table.csv with StudyID, PatientID, split; --language es"
        ),
        source="https://bimcv.cipf.es/bimcv-projects/padchest-gr/",
        rows="4,555 studies",
        metric="iou",
        licence="BIMCV's, for research",
        get="https://bimcv.cipf.es/bimcv-projects/padchest-gr/",
        options=(
            "--input data/padchest-gr/grounded_reports_20240819.json --image-dir data/padchest-gr/PadChest_GR --split train"
        ),
        account="a request to BIMCV",
        task="grounding",
        reader=_boxes(layouts.padchest_gr, marks=("findings",), space="unit", box_format="xyxy", split_column=True),
    ),
    "rsna-pneumonia": DataSet(
        title="RSNA Pneumonia Detection Challenge",
        layout="stage_2_train_labels.csv: patientId, x, y, width, height in pixels, Target; DICOM named by patientId",
        source="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
        rows="26,684 pictures",
        metric="iou",
        licence="the competition's rules",
        get="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data",
        options="--input data/rsna/stage_2_train_labels.csv --image-dir data/rsna/stage_2_train_images",
        account="Kaggle",
        task="grounding",
        reader=_boxes(
            layouts.rsna_pneumonia, marks=("patientId",), question="Locate every lung opacity in this image."
        ),
    ),
    "nih-boxes": DataSet(
        title="NIH ChestX-ray14, boxes",
        layout="BBox_List_2017.csv: Image Index, Finding Label, Bbox [x,y,w,h] in pixels; PNG in images_001 and so on",
        source="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        rows="984 boxes on 880 pictures",
        metric="iou",
        licence="free, with acknowledgement",
        get="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        options=('--input data/nih/BBox_List_2017.csv --image-dir data/nih/images --question "Locate the {label}."'),
        task="grounding",
        reader=_boxes(layouts.nih_boxes, marks=("Image Index",), nested=True),
    ),
    "chestx-det": DataSet(
        title="ChestX-Det",
        layout="ChestX_Det_train.json, _test.json: file_name, syms, boxes (x1, y1, x2, y2 in pixels), polygons",
        source="https://github.com/Deepwise-AILab/ChestX-Det-Dataset",
        rows="train 3,025, test 553 pictures",
        metric="iou",
        licence="see its page",
        get="https://github.com/Deepwise-AILab/ChestX-Det-Dataset",
        options="--input data/chestx-det/ChestX_Det_train.json --image-dir data/chestx-det/train_data",
        task="grounding",
        reader=_boxes(layouts.chestx_det, marks=("syms",), box_format="xyxy"),
    ),
    "vindr-mammo": DataSet(
        title="VinDr-Mammo",
        layout=(
            "finding_annotations.csv: study_id, image_id, height, width, finding_categories, xmin, ymin, xmax, ymax in pixels, "
            "split (training, test); DICOM in a folder for each study"
        ),
        source="https://physionet.org/content/vindr-mammo/",
        rows="20,000 pictures, 2,254 boxes",
        metric="iou",
        licence=_CREDENTIALED,
        get="https://physionet.org/content/vindr-mammo/",
        options=(
            "--input data/vindr-mammo/finding_annotations.csv --image-dir data/vindr-mammo/images --split training"
        ),
        account=_PHYSIONET,
        task="grounding",
        reader=_boxes(layouts.vindr_mammo, marks=("finding_categories",), split_column=True),
    ),
    "chexlocalize": DataSet(
        title="CheXlocalize",
        layout="gt_segmentations_val.json, _test.json: picture -> pathology -> COCO's run lengths; CheXpert's JPG folders",
        source="https://github.com/rajpurkarlab/cheXlocalize",
        rows="val 234, test 668 pictures",
        metric="iou",
        licence="Stanford's research use agreement",
        get="https://stanfordaimi.azurewebsites.net/datasets/23c56a0d-15de-405b-87c8-99c30138950c",
        options=(
            "--input data/chexlocalize/CheXlocalize/gt_segmentations_val.json "
            '--image-dir data/chexlocalize/CheXpert/val --question "Locate the {label}."'
        ),
        account="Stanford AIMI",
        task="grounding",
        reader=_boxes(layouts.chexlocalize, box_format="xyxy", unpack=layouts.by_picture),
    ),
    "siim-acr": DataSet(
        title="SIIM-ACR Pneumothorax Segmentation",
        layout='train-rle.csv: ImageId, " EncodedPixels" (relative run lengths of 1024 x 1024); DICOM in folders of studies',
        source="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
        rows="12,047 pictures",
        metric="iou",
        licence="the competition's rules",
        get="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation/data",
        options="--input data/siim/train-rle.csv --image-dir data/siim/dicom-images-train",
        account="Kaggle",
        task="grounding",
        reader=_boxes(
            layouts.siim_acr,
            marks=("ImageId",),
            box_format="xyxy",
            nested=True,
            question="Locate the pneumothorax in this image.",
        ),
    ),
    "verl-boxes": DataSet(
        title="verl's parquet with boxes",
        layout="parquet with prompt, reward_model.ground_truth (x1, y1, x2, y2 in 0..1), extra_info.image_path",
        source="https://verl.readthedocs.io, preparation of data",
        rows="any",
        metric="iou",
        licence="its own",
        get="one's own preprocessing",
        options="--input data/grounding/train.parquet",
        task="grounding",
        reader=_boxes(layouts.verl_boxes, marks=("reward_model",), space="unit", box_format="xyxy"),
    ),
}
