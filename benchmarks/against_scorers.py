"""Score the same made-up answers here and with the published scorers, and print the kinds of disagreement.

    python benchmarks/against_scorers.py --folder /path/for/scorers

Installs lmms-eval's scorers (without what its models need), anls, anls-star and math-verify from the package registry into a
folder of its own, asks them in a process of its own, and names each kind with its number, an example and its reason. The exit
code is 1 where a disagreement has no known reason. Takes some three minutes; it is no part of CI.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = (
    "lmms_eval==0.7.3",
    "anls==0.0.2",
    "anls-star==1.0.1",
    "math-verify==0.9.0",
    "latex2sympy2_extended==1.11.0",
)
NEEDED = (
    "loguru",
    "pyyaml",
    "Levenshtein",
    "numpy",
    "pandas",
    "sympy",
    "antlr4-python3-runtime==4.9.3",
    "mpmath",
    "scipy",
    "munkres",
)
Case = tuple[str, str, list[str], list[str], dict[str, Any]]
"""(scorer, answer, true answers, choices, meta)"""

METRIC = {"mmmu_choice": "multiple_choice", "mcq_extract": "multiple_choice", "scienceqa": "multiple_choice"}
METRIC |= {"chartqa": "relaxed_accuracy", "anls_star": "anls", "math_verify": "math"}
"""The metric here, where it has another name than the scorer."""

WORDS = [
    "red",
    "dark red",
    "cat",
    "the cat",
    "John's",
    "two",
    "2",
    "none",
    "yes",
    "Tokyo",
    "x-ray",
    "a/b",
    "dont",
    "St. Mary",
]
NUMBERS = [
    "5",
    "-5",
    "3.43",
    "3.429",
    "1,200",
    "1200",
    "0.5",
    "50%",
    "45 %",
    "$3.20",
    "1e3",
    "+3.5",
    "7.0",
    "12 m",
    "nan",
]
MATH = [
    "1/2",
    "0.5",
    r"\frac{1}{2}",
    "50%",
    r"50\%",
    "3 1/2",
    "3.5",
    "4:10",
    "12:30",
    "6/8/2020",
    "3/4/2020",
    "seat",
    "east",
]
MATH += [
    "x+1",
    "1+x",
    "x>3",
    "x<3",
    "(1, 2)",
    "{1, 2}",
    "2:3",
    "4:6",
    "no",
    "on",
    r"\pi",
    "1,000",
    "1000",
    "1e3",
    "-5",
    "5",
]
CHOICES = [["dog", "cat", "bird"], ["-5", "5", "7", "-7"], ["x>0", "x<0", "x=0"], ["red", "dark red", "blue"]]
FORMS = [
    "{letter}",
    "({letter})",
    "{letter}.",
    "{letter}. {text}",
    "{letter}.{text}",
    "{text}",
    "The answer is {letter}.",
]
FORMS += [
    "The answer is ({letter}).",
    "**{letter}**",
    "{small}",
    "Answer: {letter}",
    "答案是{letter}",
    "{letter}, {other}",
]
FORMS += [
    "{list}\nThe answer is ({letter}).",
    "I do not know",
    "{letter} or {other}",
    "'{letter}'",
    "so it must be the {text} one there",
]


def cases(count: int) -> list[Case]:
    """Made answers, `count` for each scorer."""
    generator = random.Random(11)
    made: list[Case] = []
    pick = generator.choice
    for _ in range(count):
        said, truth = pick(WORDS) + pick(["", ".", "?", ", it is"]), [pick(WORDS) for _ in range(10)]
        made.append(("textvqa", said, truth, [], {}))
        made.append(
            (
                "mmmu_open",
                pick(["{}", "the answer is {}", "x = {}", "so {} V."]).format(pick(NUMBERS + WORDS)),
                [pick(NUMBERS + WORDS)],
                [],
                {},
            )
        )
        made.append(("chartqa", pick(NUMBERS + WORDS) + pick(["", "", "."]), [pick(NUMBERS + WORDS)], [], {}))
        letters = "".join(generator.choices("abcde ", k=generator.randrange(1, 9)))
        changed = "".join(pick([c, c, c, "x", ""]) for c in letters)
        made += [(name, changed, [letters], [], {}) for name in ("anls", "anls_star")]
        choices = pick(CHOICES)
        right, other = generator.sample(range(len(choices)), 2)
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", choices, strict=False))
        names = {
            "letter": "ABCD"[right],
            "small": "abcd"[right],
            "other": "ABCD"[other],
            "text": choices[right],
            "list": listed,
        }
        reply, gold = pick(FORMS).format(**names), ["ABCD"[pick([right, right, other])]]
        made += [(name, reply, gold, choices, {}) for name in ("mmmu_choice", "mcq_extract", "scienceqa")]
        kind = pick(["integer", "float", "list", "text"])
        digits = pick([1, 2])  # lmms-eval takes no float (findings/lmms_eval_mathvista_precision.sh)
        meta = {"answer_type": kind, "precision": digits}
        if kind == "text":
            made.append(("mathvista", reply, gold, choices, meta))
        elif kind == "list":
            made.append(
                ("mathvista", str(generator.sample(range(3), 2)), [str(generator.sample(range(3), 2))], [], meta)
            )
        else:
            value = generator.uniform(-9, 9)
            true = str(int(value)) if kind == "integer" else str(round(value, digits))
            made.append(
                (
                    "mathvista",
                    pick([f"{value:.3f}", f"{value + 0.04:.2f}", f"about {value:.2f}", "5 or 6"]),
                    [true],
                    [],
                    meta,
                )
            )
    return made + [("math_verify", a, [b], [], {}) for a in MATH for b in MATH]


def _at_half(case: Case) -> bool:
    from vision_rl.rewards.text_metrics import edit_distance

    said, truth = (" ".join(text.split()) for text in (case[1], case[2][0]))
    longer = max(len(said), len(truth))
    return longer > 0 and 2 * edit_distance(said, truth, longer) == longer


REASONS: dict[str, list[tuple[Callable[[Case], bool], str]]] = {
    "mmmu_choice": [
        (lambda c: "know" in c[1], "the reply names no choice: MMMU's reader draws one at random, here it is wrong"),
        (
            lambda c: "or" in c[1].split() or "," in c[1],
            "two letters: MMMU's reader takes the last, here they are two answers",
        ),
        (
            lambda c: True,
            "a form that MMMU's reader does not know (short text, bold, quoted, small, Chinese): it guesses",
        ),
    ],
    "mcq_extract": [
        (lambda c: "know" in c[1], "the reply names no choice: any capital letter in it counts there"),
        (lambda c: "or" in c[1].split() or "," in c[1], "two letters: it takes one of them, here they are two answers"),
        (lambda c: True, "it looks for capital letters only, of a text also those inside words"),
    ],
    "scienceqa": [
        (lambda c: True, "it takes a lone letter, or a letter with a point first; here any way of naming a choice")
    ],
    "chartqa": [
        (lambda c: c[1].endswith("."), "a full stop makes a text of a number and another text of a text there"),
        (
            lambda c: bool(re.search(r"[$,]|\d [%m]", c[1] + c[2][0])),
            "thousands, currencies and a blank before % are no number there",
        ),
        (lambda c: "nan" in (c[1], c[2][0]), "nan is a number for float()"),
    ],
    "anls": [(lambda case: " " in case[1] + case[2][0], "blanks at an end are letters there")],
    "anls_star": [
        (
            lambda case: _at_half(case),
            "at a distance of exactly one half anls-star pays 0.5; the paper's rule, and here, 0",
        ),
        (lambda case: " " in case[1] + case[2][0], "blanks at an end are letters there, or the other way round"),
    ],
    "mathvista": [
        (
            lambda c: bool(c[3]),
            "GPT-4 extracts the choice there; its rules alone take the most similar text for any other form",
        ),
        (lambda c: not c[3], "GPT-4 extracts the number there; its rules alone read a bare number only"),
    ],
    "math_verify": [
        (lambda c: any(re.search(r"\d\s\d", t) for t in (c[1], c[2][0])), "a mixed number: (3 + 1)/2 there"),
        (
            lambda c: any("%" in t for t in (c[1], c[2][0])),
            "a percentage: by the antlr runtime there, 1/2 (or 50 beside 50) here",
        ),
        (
            lambda c: any(re.search(r":|/\d+/", t) for t in (c[1], c[2][0])),
            "a time or a date: a ratio or a division there",
        ),
        (
            lambda c: any(re.search(r"[a-z]{2}", t) and "\\" not in t for t in (c[1], c[2][0])),
            "a word: a product of letters there",
        ),
        (lambda c: "1e3" in (c[1], c[2][0]), "an exponent: 3e there"),
        (
            lambda c: "(1, 2)" in (c[1], c[2][0]) or "{1, 2}" in (c[1], c[2][0]),
            "a list with more parts than the truth is guessing here",
        ),
    ],
}


def official(folder: Path) -> None:
    """In the process of its own: cases from stdin, one score each to stdout."""
    sys.path.insert(0, str(folder))
    for name in (
        "lmms_eval",
        "lmms_eval.tasks",
        "lmms_eval.tasks.mmmu",
        "lmms_eval.tasks.mathvista",
        "lmms_eval.tasks._task_utils",
    ):
        package = types.ModuleType(name)  # without their __init__, which import every model
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = package
    unused: Any = type("Unused", (), {"__init__": lambda self, *args, **more: None})
    for name, members in {
        "lmms_eval.llm_judge": {"Request": unused, "ServerConfig": unused, "get_server": lambda **more: None},
        "lmms_eval.verifiers": {"VerificationPipeline": unused},
        "lmms_eval.verifiers.openai": {"OpenAIVerifier": unused},
    }.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(members)
    import anls_star
    from anls import anls_score
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks.chartqa.utils import relaxed_correctness
    from lmms_eval.tasks.mathvista.mathvista_evals import MathVistaEvaluator
    from lmms_eval.tasks.mmmu import utils as mmmu
    from lmms_eval.tasks.scienceqa.utils import sqa_process_results
    from lmms_eval.tasks.textvqa.utils import textvqa_process_results
    from math_verify import parse, verify

    vista = MathVistaEvaluator()

    def mathvista(said: str, truths: list[str], choices: list[str], meta: dict[str, Any]) -> float:
        kind = "multi_choice" if choices else "free_form"
        answer = vista.normalize_extracted_answer(said, choices, kind, meta["answer_type"], meta["precision"])
        return float(vista.safe_equal(answer, choices["ABCD".index(truths[0])] if choices else truths[0]))

    def mmmu_choice(said: str, truths: list[str], choices: list[str], meta: dict[str, Any]) -> float:
        index, letters = mmmu.get_multi_choice_info(choices)
        return float(mmmu.parse_multi_choice_response(said, letters, index) == truths[0])

    def science(said: str, truths: list[str], choices: list[str], meta: dict[str, Any]) -> float:
        return float(
            sqa_process_results({"choices": choices, "answer": "ABCD".index(truths[0])}, [said])["exact_match"]
        )

    def equation(said: str, truths: list[str], choices: list[str], meta: dict[str, Any]) -> float:
        return float(verify(parse(f"${truths[0]}$"), parse(f"${said}$")))

    scorers: dict[str, Callable[..., float]] = {
        "textvqa": lambda s, t, c, m: textvqa_process_results({"answers": list(t), "question_id": 0}, [s])[
            "exact_match"
        ],
        "mmmu_open": lambda s, t, c, m: float(mmmu.eval_open(t[0], mmmu.parse_open_response(s))),
        "chartqa": lambda s, t, c, m: float(relaxed_correctness(s, t[0])),
        "anls": lambda s, t, c, m: anls_score(prediction=s, gold_labels=t, threshold=0.5),
        "anls_star": lambda s, t, c, m: anls_star.anls_score(t[0], s),
        "mcq_extract": lambda s, t, c, m: float(extract_mcq_answer(s, list("ABCD"[: len(c)])) == t[0]),
        "mmmu_choice": mmmu_choice,
        "scienceqa": science,
        "mathvista": mathvista,
        "math_verify": equation,
    }
    json.dump([scorers[case[0]](*case[1:]) for case in json.load(sys.stdin)], sys.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the scorers are installed, once")
    parser.add_argument("--cases", type=int, default=2000, help="made answers for each scorer")
    parser.add_argument("--official", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.official:
        official(args.folder)
        return
    if not (args.folder / "lmms_eval").is_dir():
        install = [sys.executable, "-m", "uv", "pip", "install", "-q", "--target", str(args.folder)]
        subprocess.run([*install, "--no-deps", *PACKAGES], check=True)
        subprocess.run([*install, *NEEDED], check=True)
    from vision_rl.rewards.metrics import metric

    made = cases(args.cases)
    command = [sys.executable, __file__, "--official", "--folder", str(args.folder)]
    quiet = {**os.environ, "LOGURU_LEVEL": "ERROR"}
    done = subprocess.run(command, input=json.dumps(made), capture_output=True, text=True, check=False, env=quiet)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    theirs = json.loads(done.stdout[done.stdout.rindex("[") :])
    kinds: dict[tuple[str, str], list[str]] = {}
    for case, other in zip(made, theirs, strict=True):
        ours = metric(METRIC.get(case[0], case[0])).of_answer(*case[1:])
        if abs(ours - other) > 1e-6:
            reason = next((why for fits, why in REASONS.get(case[0], []) if fits(case)), "NO KNOWN REASON")
            example = f"{case[1]!r}, true {case[2][:3]}, choices {case[3]}: {other:g} there, {ours:g} here"
            kinds.setdefault((case[0], reason), []).append(example)
    for name in dict.fromkeys(case[0] for case in made):
        found = {why: seen for (scorer, why), seen in kinds.items() if scorer == name}
        total = sum(case[0] == name for case in made)
        print(f"{name}: {total} answers, {sum(map(len, found.values()))} scored otherwise")
        for why, seen in found.items():
            print(f"    {len(seen)} x {why}\n        e.g. {seen[0]}")
    sys.exit(any(why == "NO KNOWN REASON" for _, why in kinds))


if __name__ == "__main__":
    main()
