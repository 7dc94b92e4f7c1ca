"""The published radiology sets that `data_utils.py convert NAME` reads, one declaration each; docs/radiology.md is their page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vision_rl.data.convert import box_sets
from vision_rl.data.convert import radiology_layouts as layouts
from vision_rl.data.convert.box_sets import BoxOptions
from vision_rl.data.convert.data_set import DataSet, Source
from vision_rl.data.convert.records import OnBad, Record, source_files

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


RADIOLOGY_SETS: tuple[DataSet, ...] = (
    DataSet("vindr-cxr", metric="iou", task="grounding", reader=_boxes()),
    DataSet(
        "ms-cxr",
        metric="iou",
        task="grounding",
        reader=_boxes(
            layouts.ms_cxr, marks=("label_text",), image_field="path", question_field="label_text", split_column=True
        ),
    ),
    DataSet(
        "padchest-gr",
        metric="iou",
        task="grounding",
        reader=_boxes(layouts.padchest_gr, marks=("findings",), space="unit", box_format="xyxy", split_column=True),
    ),
    DataSet(
        "rsna-pneumonia",
        metric="iou",
        task="grounding",
        reader=_boxes(
            layouts.rsna_pneumonia, marks=("patientId",), question="Locate every lung opacity in this image."
        ),
    ),
    DataSet(
        "nih-boxes",
        metric="iou",
        task="grounding",
        reader=_boxes(layouts.nih_boxes, marks=("Image Index",), nested=True),
    ),
    DataSet(
        "chestx-det",
        metric="iou",
        task="grounding",
        reader=_boxes(layouts.chestx_det, marks=("syms",), box_format="xyxy"),
    ),
    DataSet(
        "vindr-mammo",
        metric="iou",
        task="grounding",
        reader=_boxes(layouts.vindr_mammo, marks=("finding_categories",), split_column=True),
    ),
    DataSet(
        "chexlocalize",
        metric="iou",
        task="grounding",
        reader=_boxes(layouts.chexlocalize, box_format="xyxy", unpack=layouts.by_picture),
    ),
    DataSet(
        "siim-acr",
        metric="iou",
        task="grounding",
        reader=_boxes(
            layouts.siim_acr,
            marks=("ImageId",),
            box_format="xyxy",
            nested=True,
            question="Locate the pneumothorax in this image.",
        ),
    ),
    DataSet(
        "verl-boxes",
        metric="iou",
        task="grounding",
        reader=_boxes(layouts.verl_boxes, marks=("reward_model",), space="unit", box_format="xyxy"),
    ),
)
