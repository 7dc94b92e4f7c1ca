"""Radiology sets in their published layouts, as `tests.data_samples.SAMPLES`; pictures are of 200 x 100 pixels."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco

from tests.data_samples import BOX, Sample


def _mask(rows: slice, columns: slice) -> dict[str, object]:
    mask = np.zeros((100, 200), np.uint8, order="F")
    mask[rows, columns] = 1
    runs = coco.encode(mask)
    return {"size": [100, 200], "counts": runs["counts"].decode()}


def siim_runs(left: int, top: int, right: int, bottom: int) -> str:
    """A rectangle in pixels of 1024 x 1024 as SIIM-ACR's relative run lengths, down the columns."""
    runs, end = [], 0
    for column in range(left, right):
        start = column * 1024 + top
        runs += [start - end, bottom - top]
        end = start + bottom - top
    return " ".join(map(str, runs))


_LABEL = "--question=Locate the {label}."
_FINDING = {"sentence_en": "Left effusion.", "sentence_es": "Derrame izquierdo.", "abnormal": True}
RADIOLOGY_SAMPLES: dict[str, Sample] = {
    "padchest-gr": Sample(
        "grounded_reports_20240819.json",
        [
            {
                "StudyID": "s1",
                "ImageID": "a.png",
                "findings": [
                    {**_FINDING, "boxes": BOX * 2, "labels": ["pleural effusion"], "locations": [], "extra_boxes": []},
                    {"sentence_en": "Normal heart.", "sentence_es": "Corazón normal.", "abnormal": False},
                ],
            },
            {"StudyID": "s2", "ImageID": "b.png", "findings": [{**_FINDING, "boxes": BOX, "labels": []}]},
        ],
        [
            {
                "question": "Left effusion.",
                "boxes": BOX * 2,
                "labels": ["pleural effusion"] * 2,
                "meta": {"patient": "p1", "split": "train"},
            }
        ],
        pictures=("a.png", "b.png"),
        options=("--split", "train"),
        beside={"master_table.csv": "StudyID,ImageID,PatientID,split\ns1,a.png,p1,train\ns2,b.png,p2,test\n"},
    ),
    "rsna-pneumonia": Sample(
        "stage_2_train_labels.csv",
        "patientId,x,y,width,height,Target\na,20.0,10.0,40.0,30.0,1\na,20.0,10.0,40.0,30.0,1\nb,,,,,0\n",
        [{"labels": ["Lung Opacity"] * 2, "boxes": BOX * 2, "meta": {"patient": "a"}}, {"boxes": []}],
        pictures=("a.png", "b.png"),
    ),
    "nih-boxes": Sample(
        "BBox_List_2017.csv",
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00013118_008.png,Infiltrate,20.0,10.0,40.0,30.0,,,\n",
        [{"question": "Locate the Infiltration.", "boxes": BOX, "meta": {"patient": "00013118"}}],
        pictures=("images_003/images/00013118_008.png",),
        options=(_LABEL,),
    ),
    "chestx-det": Sample(
        "ChestX_Det_train.json",
        [
            {
                "file_name": "36199.png",
                "syms": ["Effusion"],
                "boxes": [[20, 10, 60, 40]],
                "polygons": [[[20, 10], [60, 10], [60, 40]]],
            },
            {"file_name": "b.png", "syms": [], "boxes": [], "polygons": []},
        ],
        [
            {"labels": ["Effusion"], "boxes": BOX, "meta": {"polygons": [[0.1, 0.1, 0.3, 0.1, 0.3, 0.4]]}},
            {"boxes": [], "meta": {}},
        ],
        pictures=("36199.png", "b.png"),
    ),
    "vindr-mammo": Sample(
        "finding_annotations.csv",
        "study_id,series_id,laterality,image_id,height,width,finding_categories,finding_birads,xmin,ymin,xmax,ymax,split\n"
        "s1,e1,L,a,1000,2000,\"['Mass', 'Asymmetry']\",BI-RADS 4,200,100,600,400,training\n"
        "s2,e2,R,b,100,200,['No Finding'],,,,,,training\n"
        "s3,e3,R,c,100,200,['No Finding'],,,,,,test\n",
        [
            {"labels": ["Mass, Asymmetry"], "boxes": BOX, "meta": {"patient": "s1", "laterality": "L"}},
            {"boxes": [], "meta": {"patient": "s2"}},
        ],
        pictures=("s1/a.png", "s2/b.png"),
        options=("--split", "training"),
    ),
    "chexlocalize": Sample(
        "gt_segmentations_val.json",
        {
            "patient64541_study1_view1_frontal": {
                "Cardiomegaly": _mask(slice(10, 40), slice(20, 60)),
                "Edema": _mask(slice(0, 0), slice(0, 0)),
            },
            "patient64542_study1_view2_lateral": {"Edema": _mask(slice(0, 0), slice(0, 0))},
        },
        [
            {"question": "Locate the Cardiomegaly.", "boxes": BOX, "meta": {"patient": "patient64541"}},
            {"question": "Locate the Cardiomegaly.", "boxes": []},
        ],
        pictures=("patient64541/study1/view1_frontal.jpg", "patient64542/study1/view2_lateral.jpg"),
        options=(_LABEL,),
    ),
    "siim-acr": Sample(
        "train-rle.csv",
        f"ImageId, EncodedPixels\n1.2.276.0,{siim_runs(256, 128, 512, 512)}\n1.2.276.1, -1\n",
        [{"labels": ["Pneumothorax"], "boxes": [[0.25, 0.125, 0.5, 0.5]]}, {"boxes": []}],
        pictures=("1.2.9/1.3.9/1.2.276.0.png", "1.2.8/1.3.8/1.2.276.1.png"),
        size=(128, 128),
    ),
    "verl-boxes": Sample(
        "train.parquet",
        [
            {
                "data_source": "vindr-cxr",
                "prompt": [{"role": "user", "content": "<image>\nWhere is the nodule?"}],
                "reward_model": {"style": "iou", "ground_truth": BOX, "label": "Nodule"},
                "extra_info": {"split": "train", "index": 0, "image_path": "a.png"},
            }
        ],
        [
            {
                "question": "Where is the nodule?",
                "boxes": BOX,
                "labels": ["Nodule"],
                "meta": {"data_source": "vindr-cxr"},
            }
        ],
        pictures=("a.png",),
    ),
}
