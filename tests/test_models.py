"""The model table against the installed vLLM, transformers and coordinate table; what is refused, and why."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

from scripts.tiny_models.families import BUILDERS, build
from vision_rl.answers.coordinates import FAMILIES
from vision_rl.config.known_keys import package_dir
from vision_rl.config.resolve import resolve
from vision_rl.errors import UserError
from vision_rl.models.family import ModelFamily
from vision_rl.models.positions import rope_index_of
from vision_rl.models.processor import image_token_id, load_processor
from vision_rl.models.table import TABLE, check_pairing, measured, model_info, render_models
from vision_rl.models.tokens import forbidden_token_ids

TINY = Path(__file__).resolve().parents[1] / "vision_rl" / "tiny" / "checkpoint"
ROWS = {row.name: row for row in TABLE}
GUIDE = (
    "Qwen/Qwen2-VL-2B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen3-VL-4B-Instruct",
    "llava-hf/llava-1.5-7b-hf",
    "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "deepseek-ai/deepseek-vl2-tiny",
    "openbmb/MiniCPM-V-2_6",
    "openbmb/MiniCPM-o-2_6",
    "microsoft/Phi-4-multimodal-instruct",
    "zai-org/glm-4v-9b",
    "zai-org/GLM-4.5V",
    "OpenGVLab/InternVL2_5-2B",
    "OpenGVLab/InternVL3-8B",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "mistral-community/pixtral-12b",
    "HuggingFaceM4/Idefics3-8B-Llama3",
    "allenai/Molmo-7B-D-0924",
    "deepseek-ai/Janus-Pro-1B",
    "google/gemma-3-4b-it",
    "moonshotai/Kimi-VL-A3B-Instruct",
    "Efficient-Large-Model/NVILA-8B",
    "XiaomiMiMo/MiMo-VL-7B-RL",
    "rednote-hilab/dots.vlm1.inst",
)


def folder(tmp_path: Path, config: object) -> Path:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return tmp_path


def vllm_architectures() -> set[str]:
    """Names in vLLM's registry, read from its source: importing vLLM takes ten seconds."""
    source = (package_dir("vllm") / "model_executor" / "models" / "registry.py").read_text()
    tables = [
        node for node in ast.parse(source).body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    ]
    wanted = [node.value for node in tables if ast.unparse(node.targets[0]) == "_MULTIMODAL_MODELS"]
    ours = {"JanusForConditionalGeneration"}  # serving/vllm_janus.py
    return {name for table in wanted for name in ast.literal_eval(table)} | ours


@pytest.mark.parametrize("name", GUIDE)
def test_every_model_of_the_guide_has_a_row(name: str) -> None:
    assert model_info(name).family.name


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_rows_agree_with_the_installed_packages(row: ModelFamily) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert row.coordinates in FAMILIES
    assert row.vllm is all(name in vllm_architectures() for name in row.architectures)
    assert row.refused or all(name in CONFIG_MAPPING_NAMES for name in row.model_types)
    assert row.vllm or row.sglang
    assert model_info(row.examples[0]).family is row


CLASSES = {  # of the guides' families that are not trained: whether transformers has a class, and vLLM
    "InternVL 2.5/3/3.5": (False, True),
    "Llama 3.2 Vision": (True, False),
    "GLM-4V": (False, True),
    "DeepSeek-VL2": (False, True),
    "MiniCPM-V / -o": (False, True),
    "Phi-4 multimodal": (True, False),
    "Molmo": (False, True),
    "Kimi-VL": (False, True),
    "Janus-Pro (original files)": (False, False),
    "NVILA": (False, False),
    "DotsVLM": (False, False),
    "Gemma 3": (True, True),
}


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_family_lacks_is_lacking_in_the_installed_packages(name: str) -> None:
    """The day that a package brings the class, the sentence is wrong, and a tiny model can be tried."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    row = ROWS[name]
    known = any(model_type in CONFIG_MAPPING_NAMES for model_type in row.model_types)
    assert (known, all(one in vllm_architectures() for one in row.architectures)) == CLASSES[name]
    assert known or row.refused.startswith("its model code comes with the checkpoint")


def test_vllms_transformers_backend_lacks_words_about_janus() -> None:
    """The day that transformers brings them, `serving/vllm_janus.py` can go."""
    from transformers import JanusProcessor, LlavaProcessor

    assert hasattr(LlavaProcessor, "_get_num_multimodal_tokens")
    assert not hasattr(JanusProcessor, "_get_num_multimodal_tokens")


@pytest.mark.parametrize(
    "row", [row for row in TABLE if row.coordinates not in ("unit", "internvl")], ids=lambda r: r.name
)
def test_coordinates_are_those_of_the_model_type(row: ModelFamily) -> None:
    for model_type in row.model_types:
        assert model_type in FAMILIES[row.coordinates].model_types


def test_the_row_of_a_folder_is_that_of_its_model_type() -> None:
    info = model_info(TINY)
    assert (info.family.name, info.on_disk, info.model_type) == ("Qwen2.5-VL", True, "qwen2_5_vl")
    assert (info.min_pixels, info.max_pixels) == (3136, 12544)


def test_pixtral_in_transformers_format_is_distinguished_from_llava(tmp_path: Path) -> None:
    pixtral = folder(tmp_path, {"model_type": "llava", "vision_config": {"model_type": "pixtral"}})
    assert model_info(pixtral).family.name == "Pixtral"
    llava = folder(tmp_path, {"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}})
    assert model_info(llava).family.name == "LLaVA-1.5"


def test_pixel_limits_in_the_newer_spelling(tmp_path: Path) -> None:
    where = folder(tmp_path, {"model_type": "qwen3_vl", "vision_config": {}})
    limits = {
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    (where / "preprocessor_config.json").write_text(json.dumps(limits))
    assert (model_info(where).min_pixels, model_info(where).max_pixels) == (65536, 16777216)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen2"}, "is not a vision model: its config.json says model_type 'qwen2'"),
        ({"model_type": "new_vl", "vision_config": {}}, "is not in the model table"),
        ({}, "is not a vision model"),
        ("{", "cannot be read as JSON"),
        (None, "has no config.json"),
    ],
)
def test_folders_that_are_no_vision_model(tmp_path: Path, config: Any, message: str) -> None:
    where = folder(tmp_path, config) if config is not None else tmp_path
    with pytest.raises(UserError, match=message):
        model_info(where)


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "a/b/c"])
def test_missing_folders(path: str) -> None:
    with pytest.raises(UserError, match=r"--model .* does not exist; give a model folder"):
        model_info(path)


def test_hub_names_of_unknown_family() -> None:
    with pytest.raises(UserError, match="its family is not clear from the name"):
        model_info("somebody/some-model")


@pytest.mark.parametrize(
    ("name", "engine", "message"),
    [
        ("OpenGVLab/InternVL3-2B-hf", "sglang", r"cannot be served by sglang: .* use --rollout-engine vllm"),
        ("OpenGVLab/InternVL2_5-2B", "vllm", r"names end in -hf"),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", "vllm", r"cross-attention"),
        ("Qwen/Qwen3.5-4B", "sglang", r"nobody has measured it there in bfloat16"),
        ("allenai/Molmo-7B-D-0924", "vllm", r"comes with the checkpoint"),
        ("llava-hf/llava-v1.6-vicuna-7b-hf", "sglang", r"cannot be served by sglang"),
    ],
)
def test_unsupported_pairings_say_why(name: str, engine: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_pairing(model_info(name), engine)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("llava-hf/llava-1.5-7b-hf", {"adapted": lambda name: True}, r"exclude_modules='\.\*vision_tower\.\*'"),
        ("Qwen/Qwen3-VL-4B-Instruct", {"adapted": lambda name: "vision_tower" not in name}, r"'\.\*visual\.\*'"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", {"freeze_vision": True, "strategy": "megatron"}, "nothing under Megatron"),
        ("Qwen/Qwen2-VL-2B-Instruct", {"strategy": "megatron"}, r"cannot be trained by Megatron"),
    ],
)
def test_settings_that_do_not_suit_a_family(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_pairing(model_info(name), **settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Qwen/Qwen3-VL-4B-Instruct", {"freeze_vision": True}),
        ("llava-hf/llava-1.5-7b-hf", {"freeze_vision": True, "adapted": lambda name: "vision_tower" not in name}),
        ("Qwen/Qwen2.5-VL-7B-Instruct", {"strategy": "megatron"}),
        ("Qwen/Qwen2-VL-7B-Instruct", {"engine": "sglang"}),
    ],
)
def test_supported_pairings_pass(name: str, settings: dict[str, Any]) -> None:
    check_pairing(model_info(name), **settings)


def test_checkpoints_whose_pictures_see_each_other_are_refused(tmp_path: Path) -> None:
    where = folder(tmp_path, {"model_type": "gemma4", "text_config": {"use_bidirectional_attention": "vision"}})
    with pytest.raises(UserError, match="vllm issue 40106"):
        check_pairing(model_info(where))
    check_pairing(model_info(folder(tmp_path, {"model_type": "gemma4", "text_config": {}})))


def test_megatron_families_are_verls() -> None:
    from vision_rl.models.table import MEGATRON

    source = (package_dir("verl") / "models" / "mcore" / "registry.py").read_text()
    for name in MEGATRON:
        assert all(architecture in source for architecture in ROWS[name].architectures)
    assert "Qwen2VLForConditionalGeneration" not in source


@pytest.mark.parametrize("excluded", [None, ".*vision_tower.*"])
def test_adapters_in_the_vision_tower_are_refused(excluded: Any) -> None:
    with pytest.raises(UserError, match=r"inside the vision tower of Qwen2\.5-VL would train but not be served"):
        resolve(
            "gpu_24gb_lora",
            task="vqa",
            model=str(TINY),
            overrides=[f"actor_rollout_ref.model.exclude_modules={excluded}"],
        )


@pytest.mark.parametrize("row", [row for row in TABLE if row.name in BUILDERS], ids=lambda row: row.name)
def test_the_row_describes_what_transformers_builds(row: ModelFamily, tmp_path: Path) -> None:
    """The tiny model is of the family's own classes: its tower is where the row says, its positions are as the row says."""
    pytest.importorskip("num2words") if row.name == "SmolVLM" else None
    build(row.name, tmp_path)
    assert model_info(tmp_path).family.name == row.name
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert any(f".{row.tower}." in f".{name}." for name, _ in model.named_modules())
    processor = load_processor(str(tmp_path))
    assert (rope_index_of(processor) is not None) == (row.positions == "mrope")
    assert image_token_id(processor) in forbidden_token_ids(processor)


FORBIDDEN = {
    "GLM-4.1V": {
        "<|image|>",
        "<|video|>",
        *(f"<|{end}_of_{kind}|>" for end in ("begin", "end") for kind in ("image", "video")),
    },
    "InternVL 3 (-hf)": {"<img>", "</img>", "<IMG_CONTEXT>", "<video>"},
    "Pixtral": {"[IMG]", "[IMG_BREAK]", "[IMG_END]"},
    "Llama 4": {
        *("<|image_start|>", "<|image_end|>", "<|image|>", "<|patch|>"),
        *("<|tile_x_separator|>", "<|tile_y_separator|>"),
    },
    "Gemma 3": {"<image_soft_token>", "<start_of_image>", "<end_of_image>"},
}


@pytest.mark.parametrize("family", FORBIDDEN)
def test_forbidden_tokens_come_from_processor_and_config(family: str, tmp_path: Path) -> None:
    processor = load_processor(str(build(family, tmp_path)))
    names = processor.tokenizer.convert_ids_to_tokens(forbidden_token_ids(processor))
    assert set(names) == FORBIDDEN[family]


def test_the_matrix_is_shown_with_its_date(tmp_path: Path) -> None:
    cell = {
        "family": "Qwen2.5-VL",
        "cell": "one picture",
        "max": 2e-6,
        "verdict": "equal",
        "date": "2026-11-25",
        "versions": "vllm 0.24.0",
    }
    results = tmp_path / "parity.json"
    video = {**cell, "cell": "video", "verdict": "differs"}  # of a family that is never shown one
    results.write_text(json.dumps([cell, {**cell, "max": 0.5, "verdict": "differs"}, video]))
    found = measured(results)
    assert (found["Qwen2.5-VL"].equal, found["Qwen2.5-VL"].cells, found["Qwen2.5-VL"].largest) == (1, 2, 2e-6)
    assert found["MiMo-VL"] == found["Qwen2.5-VL"]  # one and the same model code
    missing = tmp_path / "missing.json"
    assert measured(missing, missing) == {}  # the second is the matrix in bfloat16


def test_the_printed_table_has_every_family_and_every_reason() -> None:
    text = render_models()
    for row in TABLE:
        assert f"\n{row.name} " in f"\n{text}" and row.refused in text
