#!/usr/bin/env bash
# Runs the commands of README.md and docs/*.md as a new user types them, and prints for each the seconds until its first output and
# until its end. Fails on a command that ends with an error, or that is silent for more than five seconds.
#   bash docs/commands.sh [--list] [--write] [WORD...]      WORD: only the commands that hold it; --write: docs/commands-run.md
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-$(command -v .venv/bin/python || command -v python)}
exec env PYTHONPATH="$PWD" "$python" -m tests.page_commands "$@"
