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
    name: str,
    unfold: layouts.Unfold = lambda record: [record],
    *,
    of_source: Callable[[Source], layouts.Unfold] | None = None,
    marks: tuple[str, ...] = ("image_id",),
    nested: bool = False,
    question: str = _ALL_FINDINGS,
    **options: Any,
) -> DataSet:
    """A set that is a table of boxes. of_source: makes `unfold` where it needs more than a record. marks: see `source_files`;
    nested: pictures lie in folders that the table does not name.

    options: of `BoxOptions`. A file whose records name their split needs --split if they are of several.
    """

    def read(source: Source, on_bad: OnBad | None) -> Iterator[Record]:
        own = of_source(source) if of_source else unfold
        places = (
            {file.stem: str(file.absolute()) for file in source.directory.rglob("*") if file.is_file()}
            if nested
            else {}
        )

        def placed(record: Record) -> Iterator[Record]:
            for flat in own(record):
                file = str(flat.get("image", ""))
                stem = file.rsplit(".", 1)[0] if file.lower().endswith((".png", ".jpg", ".dcm")) else file
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

    return DataSet(name, metric="iou", task="grounding", reader=read)


RADIOLOGY_SETS: tuple[DataSet, ...] = (
    _boxes("vindr-cxr"),
    _boxes(
        "ms-cxr",
        layouts.ms_cxr,
        marks=("label_text",),
        image_field="path",
        question_field="label_text",
        split_column=True,
    ),
    _boxes(
        "padchest-gr",
        of_source=layouts.padchest_gr,
        marks=("findings",),
        space="unit",
        box_format="xyxy",
        split_column=True,
    ),
    _boxes(
        "rsna-pneumonia",
        layouts.rsna_pneumonia,
        marks=("patientId",),
        question="Locate every lung opacity in this image.",
    ),
    _boxes("nih-boxes", layouts.nih_boxes, marks=("Image Index",), nested=True),
    _boxes("chestx-det", layouts.chestx_det, marks=("syms",), box_format="xyxy"),
    _boxes("vindr-mammo", layouts.vindr_mammo, marks=("finding_categories",), split_column=True),
    _boxes("chexlocalize", of_source=layouts.chexlocalize, box_format="xyxy", unpack=layouts.by_picture),
    _boxes(
        "siim-acr",
        layouts.siim_acr,
        marks=("ImageId",),
        box_format="xyxy",
        nested=True,
        question="Locate the pneumothorax in this image.",
    ),
    _boxes("verl-boxes", layouts.verl_boxes, marks=("reward_model",), space="unit", box_format="xyxy"),
)
