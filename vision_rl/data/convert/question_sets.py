"""The published question sets that `data_utils.py convert NAME` reads, one declaration each."""

from __future__ import annotations

from vision_rl.data.convert import layouts
from vision_rl.data.convert.data_set import DataSet

QUESTION_SETS: tuple[DataSet, ...] = (
    DataSet(
        "vqav2",
        metric="vqa",
    ),
    DataSet(
        "ok-vqa",
        metric="vqa",
    ),
    DataSet(
        "textvqa",
        metric="textvqa",
        image=("image", "image_id"),
        folders=("", "train_images", "test_images"),
        drop=("question_tokens", "image_classes", "ocr_tokens", "flickr_original_url", "flickr_300k_url"),
        unpack=layouts.data_list,
    ),
    DataSet(
        "docvqa",
        metric="anls",
        identity=("questionId",),
        unpack=layouts.data_list,
    ),
    DataSet(
        "infovqa",
        metric="anls",
        image=("image", "image_local_name"),
        identity=("questionId",),
        drop=("ocr", "image_url"),
        unpack=layouts.data_list,
    ),
    DataSet(
        "chartqa",
        metric="relaxed_accuracy",
        image=("image", "imgname"),
        question=("query", "question"),
        answer=("label", "answer"),
        folders=("", "png"),
    ),
    DataSet(
        "gqa",
        metric="exact_match",
        image=("imageId",),
        folders=("", "images"),
        unpack=layouts.by_key,
    ),
    DataSet(
        "vqa-rad",
        metric="medical",
        image=("image", "image_name"),
        identity=("qid",),
    ),
    DataSet(
        "slake",
        metric="medical",
        image=("img_name",),
        identity=("qid",),
        folders=("", "imgs"),
    ),
    DataSet(
        "pathvqa",
        metric="medical",
    ),
    DataSet(
        "ai2d",
        metric="multiple_choice",
        choices=("options",),
        answer_as="index",
    ),
    DataSet(
        "scienceqa",
        metric="multiple_choice",
        choices=("choices",),
        answer_as="index",
        drop=("hint", "lecture", "solution", "task"),
        unfold=layouts.scienceqa,
    ),
    DataSet(
        "mmmu",
        metric="mmmu_open",
        image=("images",),
        choices=("options",),
        mark=("image_1",),
        drop=("explanation",),
        unfold=layouts.mmmu,
    ),
    DataSet(
        "mathvista",
        metric="mathvista",
        image=("decoded_image", "image"),
        choices=("choices",),
        answer_as="text",
        identity=("pid",),
        drop=("query", "image", "task"),
        unfold=layouts.mathvista,
    ),
    DataSet(
        "geo3k",
        metric="math",
        image=("images", "image"),
        question=("problem",),
        drop=("choices", "ground_truth"),
    ),
    DataSet(
        "verl",
        metric="exact_match",
        image=("images",),
        mark=("prompt",),
        unfold=layouts.verl,
        metric_of=layouts.verl_metric,
    ),
    DataSet(
        "llava",
        metric="token_f1",
        image=("image", "images"),
        mark=("conversations",),
        unfold=layouts.llava,
    ),
    DataSet(
        "messages",
        metric="token_f1",
        image=("images", "image"),
        mark=("messages",),
        unfold=layouts.messages,
    ),
    DataSet(
        "custom",
        metric="",
        image=("image_paths", "images", "image_path", "image", "frames"),
        question=("question", "instruction"),
        choices=("choices", "options"),
        answer_as="either",
        identity=("id",),
        drop=("id", "video"),
        unfold=layouts.lettered_columns,
    ),
)
