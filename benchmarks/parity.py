"""Measure the parity matrix: do trainer and model server compute the same log-probabilities, family by family?

    python benchmarks/parity.py                          all families, written to vision_rl/models/parity.json
    python benchmarks/parity.py --families Qwen3-VL      some of them; the other rows of the file stay
    python benchmarks/parity.py --precision bfloat16     beside a control family, written to vision_rl/models/parity_bf16.json
    python benchmarks/parity.py --modes                  the engine's modes, written to benchmarks/results/parity_modes.json
    python benchmarks/parity.py --engine sglang          SGLang in place of vLLM, written to benchmarks/results/parity_sglang.json
    python benchmarks/parity.py --write-docs             docs/models.md from those files

A tiny model of each family is built with random weights, served by vLLM in float32 on the CPU, and asked about pictures; the
replies are recomputed by the trainer's code. No GPU and no download are needed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    print("importing torch, transformers and verl", file=sys.stderr)

from parity_docs import write_docs
from safetensors.torch import load_file, save_file

from benchmarks.parity_modes import MODES, compare_modes
from benchmarks.parity_sglang import SGLANG
from scripts.tiny_models.families import BUILDERS, build
from vision_rl.errors import UserError, cli_errors
from vision_rl.models.table import LOW_RESULTS, PARITY_RESULTS, TABLE
from vision_rl.preflight.low_precision import prove
from vision_rl.preflight.parity import Job, Result, compare
from vision_rl.preflight.parity_cells import VIDEO

RESULTS = Path(__file__).with_name("results")
MODE_RESULTS = RESULTS / "parity_modes.json"
SGLANG_RESULTS = RESULTS / "parity_sglang.json"
CONTROL, SPARSE_CONTROL = "Qwen3-VL", "Qwen3-VL-MoE"
"""The yardsticks of families that float32 does not prove: it proves these, and they have the vision part of Qwen3.5. Where two
experts are nearly tied, rounding takes the other one: rare, large differences, which a dense model has not."""
EXACT = [row.name for row in TABLE if row.name in BUILDERS and row.precision == "float32"]
"""Families that vLLM serves in float32."""
MODE_FAMILIES = ["Qwen2.5-VL", "Qwen3-VL", "LLaVA-1.5"]
"""M-RoPE with window attention, M-RoPE with deepstack, and plain positions with a tower whose weights are renamed."""


def main() -> None:
    """Measure, print and write; the exit status is 1 if a family that is trained has a cell that is not equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(BUILDERS), metavar="NAME")
    parser.add_argument(
        "--modes", action="store_true", help=f"the modes of the engine: {', '.join(m.name for m in MODES)}"
    )
    parser.add_argument("--engine", choices=("vllm", "sglang"), default="vllm", help="the server (default: vllm)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the server")
    parser.add_argument(
        "--keep", type=Path, help="folder for checkpoints, pictures and logs (default: a temporary one)"
    )
    parser.add_argument("--write-docs", action="store_true", help="only write docs/models.md")
    arguments = parser.parse_args()
    with cli_errors():
        check_server(arguments.engine, arguments.modes)
    results: list[Result] = []
    if not arguments.write_docs:
        with tempfile.TemporaryDirectory(prefix="parity-") as temporary:
            folder = arguments.keep or Path(temporary)
            if arguments.modes:
                results, into = measure_modes(arguments.families or MODE_FAMILIES, folder), MODE_RESULTS
            elif arguments.precision == "bfloat16":
                results, into = measure_low(arguments.families or list(BUILDERS), folder), LOW_RESULTS
            else:
                results = measure(arguments.families or EXACT, folder, arguments.engine)
                into = PARITY_RESULTS if arguments.engine == "vllm" else SGLANG_RESULTS
        record(results, into, arguments.engine)
        for result in results:
            numbers = "" if result.max is None else f"max {result.max:.1e} mean {result.mean:.1e}"
            print(f"{result.family:18} {result.cell:26} {result.verdict:8} {numbers} {result.reason[:160]}")
    print(f"wrote {write_docs()}", flush=True)
    trained = {row.name: row for row in TABLE if row.trained or row.proven_on_cpu}
    allowed = {"equal", "refused"} if arguments.modes or arguments.engine == "sglang" else {"equal"}
    if any(
        one.verdict not in allowed
        and one.family in trained
        and not (one.cell == VIDEO and trained[one.family].no_video)
        for one in results
    ):
        sys.exit(
            "a family that the model table trains has a cell that is not equal; mend it, or refuse the family there"
        )


def check_server(engine: str, modes: bool) -> None:
    """Raise `UserError` for a server that cannot be asked here."""
    if engine == "sglang" and modes:
        raise UserError("the modes are compared with vLLM only; leave --engine out")
    if engine == "sglang" and importlib.util.find_spec("sglang") is None:
        raise UserError("SGLang is not installed; `make sglang` installs it beside vLLM (docs/sglang.md)")


def measure_modes(families: list[str], folder: Path) -> list[Result]:
    """As `measure`, for the modes of the engine."""
    folder.mkdir(parents=True, exist_ok=True)
    built = {
        family: (build(family, folder / f"{n}"), build(family, folder / f"{n}.updated", seed=1))
        for n, family in enumerate(families)
    }
    return compare_modes(built, folder)


def measure_low(families: list[str], folder: Path) -> list[Result]:
    """As `measure`, in bfloat16, with their control families; the checkpoints hold bfloat16, as published ones do."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {row.name: row for row in TABLE}
    controls = {
        name: SPARSE_CONTROL if "MoE" in name else CONTROL for name in families if rows[name].precision == "bfloat16"
    }
    controls |= {name: name for name in (CONTROL, SPARSE_CONTROL) if name in (*families, *controls.values())}
    jobs = [
        Job(
            family,
            model=_rounded(build(family, folder / f"{n}.0", seed=0)),
            updated=_rounded(build(family, folder / f"{n}.1", seed=1)),
            videos=not rows[family].no_video,
            precision="bfloat16",
        )
        for n, family in enumerate(dict.fromkeys([*controls.values(), *families]))
    ]
    return prove(jobs, folder, controls)


def _rounded(folder: Path) -> Path:
    weights = load_file(folder / "model.safetensors")
    rounded = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def measure(families: list[str], folder: Path, engine: str) -> list[Result]:
    """Build the tiny models of `families` in `folder` and compare both sides on them."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(family, build(family, folder / f"{n}"), build(family, folder / f"{n}.updated", seed=1))
        for n, family in enumerate(families)
    ]
    return compare(jobs, folder, SGLANG if engine == "sglang" else None)


def record(results: list[Result], into: Path, engine: str) -> None:
    """Replace the rows of the measured families in a results file; those of the others stay."""
    packages = (engine, "transformers", "verl", "torch")
    stamp = {
        "date": datetime.date.today().isoformat(),
        "versions": ", ".join(f"{name} {version(name).split('+')[0]}" for name in packages),
    }
    rows = json.loads(into.read_text(encoding="utf-8")) if into.exists() else []
    new = {result.family for result in results}
    rows = [row for row in rows if row["family"] not in new] + [{**result.to_json(), **stamp} for result in results]
    rows.sort(key=lambda row: list(BUILDERS).index(row["family"]))
    into.parent.mkdir(exist_ok=True)
    into.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
