# On a machine with Python 3.11 (or 3.10) and make only: `make demo` and `make test` install what they need into .venv.
# vLLM's CPU build has no wheel for later Pythons.
PYTHON ?= $(shell command -v python3.11 || command -v python3.10 || command -v python3)
VENV   := .venv
RUN    := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
SGLANG := $(VENV)/.sglang

.PHONY: install sglang demo demo-grounding test test-fast test-e2e test-long lint clean
install: $(STAMP)

$(STAMP): pyproject.toml requirements/cpu-constraints.txt requirements/cpu-overrides.txt
	@$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info < (3, 12) or sys.exit(f"Python {sys.version.split()[0]} has no CPU build of vLLM 0.11.0; install Python 3.11 or say PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet uv==0.13.8
# Byte-compiling at install is the largest gain at start-up where PYTHONDONTWRITEBYTECODE is set: a dozen processes import torch.
	env -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/uv pip install --python $(RUN) --compile-bytecode \
	  --constraints requirements/cpu-constraints.txt --overrides requirements/cpu-overrides.txt \
	  --editable '.[cpu,dev]' ./packaging/vllm-alias
	touch $(STAMP)

sglang: install $(SGLANG)

$(SGLANG): $(STAMP) requirements/sglang-cpu.txt packaging/sgl-kernel-stub/sgl_kernel/__init__.py
	env -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/uv pip install --python $(RUN) --compile-bytecode --no-deps \
	  --requirement requirements/sglang-cpu.txt ./packaging/sgl-kernel-stub
	touch $(SGLANG)

demo: install
	$(RUN) train_agent.py --task vqa --run-dir runs/demo-vqa --overwrite

demo-grounding: install
	$(RUN) train_agent.py --task grounding --run-dir runs/demo-grounding --overwrite

test: install lint test-fast test-e2e

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy .

test-fast: install
	$(RUN) -m pytest -m "not e2e" -n 2

test-e2e: sglang
	$(RUN) -m pytest -m "e2e and not long"

test-long: sglang
	$(RUN) -m pytest -m "e2e and long"

clean:
	rm -rf $(VENV) runs build
