"""The published question sets that `data_utils.py convert NAME` reads, one declaration each."""

from __future__ import annotations

from vision_rl.data.convert import layouts
from vision_rl.data.convert.data_set import DataSet

_HUB = "https://huggingface.co/datasets/"
_LMMS = "lmms-eval, lmms_eval/tasks/"

QUESTION_SETS: dict[str, DataSet] = {
    "vqav2": DataSet(
        title="VQAv2",
        layout=(
            "v2_OpenEnded_mscoco_*_questions.json and v2_mscoco_*_annotations.json, COCO's pictures; or parquet as OK-VQA's"
        ),
        source="https://visualqa.org/download.html",
        rows="train 443,757, val 214,354, test 447,793",
        metric="vqa",
        licence="CC BY 4.0",
        get="download_data.sh vqav2",
        options=(
            "--questions data/vqav2/v2_OpenEnded_mscoco_train2014_questions.json "
            "--annotations data/vqav2/v2_mscoco_train2014_annotations.json --image-dir data/vqav2/images/train2014"
        ),
    ),
    "ok-vqa": DataSet(
        title="OK-VQA",
        layout=(
            "parquet with question_id, image, question, answers (ten), question_type, answer_type; VQAv2's files too"
        ),
        source=f"{_HUB}lmms-lab/OK-VQA; {_LMMS}ok_vqa/utils.py",
        rows="train 9,009, val 5,046",
        metric="vqa",
        licence="see its page",
        get="download_data.sh ok-vqa",
        options="--input data/ok-vqa --split val2014",
    ),
    "textvqa": DataSet(
        title="TextVQA",
        layout="parquet with question_id, image, question, answers (ten); or JSON {data: [...]} with image_id",
        source=f"{_HUB}facebook/textvqa; {_LMMS}textvqa/utils.py",
        rows="train 34,602, val 5,000, test 5,734",
        metric="textvqa",
        licence="CC BY 4.0",
        get="download_data.sh textvqa",
        options="--input data/textvqa --split train",
        image=("image", "image_id"),
        folders=("", "train_images", "test_images"),
        drop=("question_tokens", "image_classes", "ocr_tokens", "flickr_original_url", "flickr_300k_url"),
        unpack=layouts.data_list,
    ),
    "docvqa": DataSet(
        title="DocVQA",
        layout="parquet with questionId, question, question_types, image, docId, answers; or JSON {data: [...]}",
        source=f"{_HUB}lmms-lab/DocVQA; {_LMMS}docvqa/utils.py",
        rows="train 39,463, val 5,349, test 5,188",
        metric="anls",
        licence="Apache 2.0 (lmms-lab's files: val and test)",
        get="download_data.sh docvqa",
        options="--input data/docvqa --split validation",
        account="the JSON files and the training split: an account at rrc.cvc.uab.es",
        identity=("questionId",),
        unpack=layouts.data_list,
    ),
    "infovqa": DataSet(
        title="InfographicVQA",
        layout=(
            "parquet with questionId, question, answers, answer_type, image; or JSON {data: [...]} with "
            "image_local_name"
        ),
        source=f"{_HUB}lmms-lab/DocVQA; {_LMMS}infovqa/utils.py",
        rows="train 23,946, val 2,801, test 3,288",
        metric="anls",
        licence="Apache 2.0 (lmms-lab's files: val and test)",
        get="download_data.sh infovqa",
        options="--input data/infovqa --split validation",
        account="the JSON files and the training split: an account at rrc.cvc.uab.es",
        image=("image", "image_local_name"),
        identity=("questionId",),
        drop=("ocr", "image_url"),
        unpack=layouts.data_list,
    ),
    "chartqa": DataSet(
        title="ChartQA",
        layout=(
            "parquet with image, query, label (a list), human_or_machine, or image, question, answer, type; or "
            "JSON with imgname, query, label"
        ),
        source=f"{_HUB}HuggingFaceM4/ChartQA; {_LMMS}chartqa/utils.py",
        rows="train 28,299, val 1,920, test 2,500",
        metric="relaxed_accuracy",
        licence="GPL 3.0",
        get="download_data.sh chartqa",
        options="--input data/chartqa --split train",
        image=("image", "imgname"),
        question=("query", "question"),
        answer=("label", "answer"),
        folders=("", "png"),
    ),
    "gqa": DataSet(
        title="GQA",
        layout=(
            "JSON {question id: {question, imageId, answer, ...}}, or lmms-lab's parquet of instructions with the"
            " same fields; pictures imageId.jpg"
        ),
        source=f"{_HUB}lmms-lab/GQA; {_LMMS}gqa/utils.py",
        rows="testdev balanced 12,578",
        metric="exact_match",
        licence="MIT (lmms-lab's card)",
        get=f"{_HUB}lmms-lab/GQA, pictures from https://cs.stanford.edu/people/dorarad/gqa/download.html",
        options="--input data/gqa/testdev_balanced_questions.json --image-dir data/gqa/images",
        image=("imageId",),
        folders=("", "images"),
        unpack=layouts.by_key,
    ),
    "vqa-rad": DataSet(
        title="VQA-RAD",
        layout=(
            "parquet with image, question, answer; or the JSON of OSF with image_name, question, answer, "
            "answer_type, qid"
        ),
        source=f"{_HUB}flaviagiammarino/vqa-rad",
        rows="train 1,793, test 451",
        metric="medical",
        licence="CC0 1.0",
        get="download_data.sh vqa-rad",
        options="--input data/vqa-rad --split train",
        image=("image", "image_name"),
        identity=("qid",),
    ),
    "slake": DataSet(
        title="SLAKE",
        layout=(
            "train.json, validation.json, test.json: lists with qid, img_name, question, answer, answer_type, "
            "q_lang; pictures in imgs"
        ),
        source=f"{_HUB}BoKelvin/SLAKE",
        rows="14,028 in all, English and Chinese (--language en or zh)",
        metric="medical",
        licence="CC BY 4.0",
        get="download_data.sh slake",
        options="--input data/slake --split train --language en",
        image=("img_name",),
        identity=("qid",),
        folders=("", "imgs"),
    ),
    "pathvqa": DataSet(
        title="PathVQA",
        layout="parquet with image, question, answer",
        source=f"{_HUB}flaviagiammarino/path-vqa",
        rows="train 19,654, val 6,259, test 6,719",
        metric="medical",
        licence="MIT; the pictures belong to two text books and PEIR",
        get="download_data.sh pathvqa",
        options="--input data/pathvqa --split train",
    ),
    "ai2d": DataSet(
        title="AI2D",
        layout="parquet with question, options, answer (the index as a text), image",
        source=f"{_HUB}lmms-lab/ai2d; {_LMMS}ai2d/utils.py",
        rows="test 3,088",
        metric="multiple_choice",
        licence="see its page",
        get="download_data.sh ai2d",
        choices=("options",),
        answer_as="index",
    ),
    "scienceqa": DataSet(
        title="ScienceQA",
        layout="parquet with image, question, choices, answer (the index), hint, lecture, solution",
        source=f"{_HUB}lmms-lab/ScienceQA; {_LMMS}scienceqa/utils.py",
        rows="with a picture: train 6,218, val 2,097, test 2,017",
        metric="multiple_choice",
        licence="CC BY-NC-SA 4.0",
        get="download_data.sh scienceqa",
        options="--input data/scienceqa --split train --skip-bad",
        choices=("choices",),
        answer_as="index",
        drop=("hint", "lecture", "solution", "task"),
        unfold=layouts.scienceqa,
    ),
    "mmmu": DataSet(
        title="MMMU",
        layout=(
            "parquet with id, question, options (a Python list as a text), answer, question_type, image_1 to image_7"
        ),
        source=f"{_HUB}lmms-lab/MMMU; {_LMMS}mmmu/utils.py",
        rows="dev 150, val 900, test 10,500",
        metric="mmmu_open",
        licence="Apache 2.0",
        get="download_data.sh mmmu",
        options="--input data/mmmu --split validation",
        image=("images",),
        choices=("options",),
        mark=("image_1",),
        drop=("explanation",),
        unfold=layouts.mmmu,
    ),
    "mathvista": DataSet(
        title="MathVista",
        layout=(
            "parquet with pid, question, decoded_image, choices, answer (the text), unit, precision, "
            "question_type, answer_type, metadata"
        ),
        source=f"{_HUB}AI4Math/MathVista; {_LMMS}mathvista/utils.py",
        rows="testmini 1,000, test 5,141",
        metric="mathvista",
        licence="CC BY-SA 4.0",
        get="download_data.sh mathvista",
        options="--input data/mathvista --split testmini",
        image=("decoded_image", "image"),
        choices=("choices",),
        answer_as="text",
        identity=("pid",),
        drop=("query", "image", "task"),
        unfold=layouts.mathvista,
    ),
    "geo3k": DataSet(
        title="geometry3k in EasyR1's form",
        layout="parquet with images (a list), problem (with <image>), answer",
        source=f"{_HUB}hiyouga/geometry3k; EasyR1, examples/config.yaml",
        rows="train 2,101, val 300, test 601",
        metric="math",
        licence="MIT",
        get="download_data.sh geo3k",
        options="--input data/geo3k --split train",
        image=("images", "image"),
        question=("problem",),
        drop=("choices", "ground_truth"),
    ),
    "verl": DataSet(
        title="verl's parquet",
        layout=(
            "data_source, prompt (messages), images (a list), ability, reward_model {style, ground_truth}, extra_info"
        ),
        source="verl, examples/data_preprocess/geo3k.py",
        rows="any",
        metric="exact_match",
        licence="the set's own",
        get="your own",
        options="--input data/verl/train.parquet",
        image=("images",),
        mark=("prompt",),
        unfold=layouts.verl,
        metric_of=layouts.verl_metric,
    ),
    "llava": DataSet(
        title="LLaVA conversations",
        layout=(
            "JSON or JSONL with id, image (one or a list), conversations [{from: human, value}, {from: gpt, "
            "value}, ...]"
        ),
        source=f"VLM-R1, README.md; {_HUB}liuhaotian/LLaVA-Instruct-150K",
        rows="LLaVA-Instruct 157,712 conversations",
        metric="token_f1",
        licence="the set's own",
        get="your own",
        options="--input data/llava/llava_instruct_150k.json --image-dir data/coco/train2017",
        image=("image", "images"),
        mark=("conversations",),
        unfold=layouts.llava,
    ),
    "messages": DataSet(
        title="conversations in messages",
        layout=(
            "JSON, JSONL or parquet with messages [{role: user, content}, {role: assistant, content}, ...], and images or "
            "picture parts in the content"
        ),
        source="ms-swift, docs: Custom Dataset; LLaMA-Factory, data/README.md; TRL, docs: Dataset formats",
        rows="any",
        metric="token_f1",
        licence="the set's own",
        get="your own",
        options="--input data/own/train.jsonl",
        image=("images", "image"),
        mark=("messages",),
        unfold=layouts.messages,
    ),
    "custom": DataSet(
        title="questions of your own",
        layout=(
            "CSV, TSV, JSON, JSONL or parquet with question or instruction, answer or answers, choices (or VLMEvalKit's "
            "columns A, B, ...), and a picture, several, or a video"
        ),
        source="docs/data.md",
        rows="any",
        metric="",
        licence="your own",
        get="your own",
        options="--input data/own.jsonl",
        image=("image_paths", "images", "image_path", "image", "frames"),
        question=("question", "instruction"),
        choices=("choices", "options"),
        answer_as="either",
        identity=("id",),
        drop=("id", "video"),
        unfold=layouts.lettered_columns,
    ),
}
