"""The `vision-rl` command, which starts every other command of this project.

vision-rl COMMAND --help
eval "$(vision-rl completion bash)"        # or zsh, tcsh
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
from pathlib import Path

from vision_rl.errors import Parser, UserError, cli_errors, meant
from vision_rl.tasks import task_names

COMMANDS = {
    "train": ("train_agent:main", "train an agent with reinforcement learning"),
    "init": ("vision_rl.new_task:main", "make a folder with a working task of your own"),
    "doctor": ("train_agent:main --doctor", "check machine, model and data for a run"),
    "plan": ("train_agent:main --plan", "estimate the memory of model and preset"),
    "models": ("train_agent:main --list-models", "list the model families, their engines and their needs"),
    "worker": ("worker:main", "claim rollouts from a trainer on another machine"),
    **{name: (f"data_utils:main {name}", text) for name, text in (
        ("sets", "list the data sets that convert knows"),
        ("convert", "convert a published set, or your own file, to parquet"),
        ("split", "split a parquet file into train, validation and test, by image and patient"),
        ("verify", "check every row, picture and gold answer of a parquet file"),
        ("stats", "print figures of a parquet file"),
        ("show", "draw a contact sheet of a parquet file"),
    )},
    "evaluate": ("evaluate_agent:main", "score a model on a data file"),
    "baseline": ("baselines.api_baseline:main", "score a hosted model, or a constant answer"),
    "compare": ("baselines.compare:main", "compare evaluations row by row"),
    "attack": ("vision_rl.preflight.attack:main", "run the attack suite against a reward"),
    "report": ("vision_rl.report.__main__:main", "write one page about a run, an evaluation, or several runs"),
    "export": ("vision_rl.export.__main__:main", "export a checkpoint as a Hugging Face folder"),
    "serve": ("vision_rl.serve:main", "serve the tiny model or a checkpoint until Ctrl-C"),
}  # fmt: skip
"""Name -> where its function is, with the words that it is given first; and what it does."""
SHELLS = ("bash", "zsh", "tcsh")


def main() -> int:
    """Run a command with the rest of the command line; what it does and says is that of its script."""
    words = sys.argv[1:]
    if words[:1] == ["completion"]:
        with cli_errors():
            print(completion(*words[1:2]))
        return 0
    if not words or words[0] not in COMMANDS:
        root = Parser(f"{__doc__}\ncommands:\n{listed()}", usage="vision-rl COMMAND ...", prog="vision-rl")
        root.add_argument("command", metavar="COMMAND", help="one of the above")
        name = root.parse_args(words[:1] or ["--help"]).command
        root.error(f"no command is called {name!r}{meant(name, COMMANDS)}")
    (function, *given), name = COMMANDS[words[0]][0].split(), words[0]
    if given[:1] == [name]:  # a command of data_utils: its parser adds the name itself
        sys.argv[0] = "vision-rl"
    else:
        sys.argv[0] = f"vision-rl {name}"
    sys.argv[1:] = [*given, *words[1:]]
    return pkgutil.resolve_name(function)(sys.argv[1:]) or 0


def listed() -> str:
    """The commands, one a line."""
    texts = {name: text for name, (_, text) in COMMANDS.items()} | {"completion": f"completion for {', '.join(SHELLS)}"}
    return "\n".join(f"  {name:12}{text}" for name, text in texts.items())


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command, by its own module."""
    function, *given = COMMANDS[command][0].split()
    found: argparse.ArgumentParser = pkgutil.resolve_name(function.replace(":main", ":parser"))()
    groups = [action for action in found._actions if isinstance(action, argparse._SubParsersAction)]
    return groups[0].choices[given[0]] if groups else found


def completion(shell: str = "bash") -> str:
    """The script by which a shell completes commands, options, presets, variants, sets and files."""
    import shtab

    from vision_rl.config.resolve import presets, variants
    from vision_rl.data.convert.sets import SETS

    if shell not in SHELLS:
        raise UserError(f"there is no completion for {shell}; choose one of {', '.join(SHELLS)}")
    names = {"preset": presets(), "variant": variants(), "set": list(SETS), "task": task_names()}
    root = argparse.ArgumentParser("vision-rl")
    commands = root.add_subparsers()
    for command, (_, text) in COMMANDS.items():
        parser = commands.add_parser(command, parents=[parser_of(command)], add_help=False, help=text)
        for action in parser._actions:
            action.choices = action.choices or names.get(action.dest)
            if action.type is Path or "FILE" in str(action.metavar):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(root, shell))


if __name__ == "__main__":
    sys.exit(main())
