#!/usr/bin/env bash
# lmms-eval 0.7.3 scores every float answer of MathVista as wrong: the set's column `precision` is float64 (the dataset card of
# AI4Math/MathVista says so), its evaluator hands it to round(), which takes whole numbers only, and the TypeError becomes None.
# Seen: precision 1 -> '1.3', precision 1.0 -> None (so that safe_equal(None, '1.3') is False).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps lmms_eval==0.7.3
"$folder/venv/bin/pip" install -q loguru pyyaml Levenshtein
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import sysconfig
import types

site = sysconfig.get_paths()["purelib"]
for name in ("lmms_eval", "lmms_eval.tasks", "lmms_eval.tasks.mathvista"):  # without what their __init__ imports for models
    package = types.ModuleType(name)
    package.__path__ = [f"{site}/{name.replace('.', '/')}"]
    sys.modules[name] = package
judge = types.ModuleType("lmms_eval.llm_judge")  # a client of OpenAI's, which takes no part in this
judge.Request = judge.ServerConfig = lambda **options: None
judge.get_server = lambda **options: None
sys.modules["lmms_eval.llm_judge"] = judge
from lmms_eval.tasks.mathvista.mathvista_evals import MathVistaEvaluator

evaluator = MathVistaEvaluator()
whole = evaluator.normalize_extracted_answer("1.26", [], "free_form", "float", 1)
float64 = evaluator.normalize_extracted_answer("1.26", [], "free_form", "float", 1.0)
print(f"lmms_eval 0.7.3: precision 1 -> {whole!r}, precision 1.0 -> {float64!r}")
print("right for the true answer 1.3:", evaluator.safe_equal(whole, "1.3"), evaluator.safe_equal(float64, "1.3"))
assert (whole, float64) == ("1.3", None), "the behaviour has changed"
PYTHON
