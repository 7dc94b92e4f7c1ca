# On a machine with Python 3.12 (or 3.11) and make only: `make demo` and `make test` install what they need into .venv.
# Each candidate is run, not only looked up: pyenv leaves a python3.12 in the PATH that fails where no such version is chosen.
PYENV := $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions
ifndef PYTHON
PYTHON := $(shell for candidate in python3.12 $(PYENV)/3.12.*/bin/python3.12 python3.11 $(PYENV)/3.11.*/bin/python3.11 python3; do \
  "$$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
  && command -v "$$candidate" && break; done)
endif
VENV   := .venv
RUN    := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
SGLANG := $(VENV)/.sglang

# Where it is set, every one of a run's dozen processes would compile the project's own files again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install python sglang demo demo-grounding demo-browser test test-fast test-slow test-e2e test-long lint clean
install: $(STAMP)

$(STAMP): pyproject.toml requirements/cpu-constraints.txt requirements/cpu-overrides.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.12 or 3.11 that runs was found; install one, or say make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet uv==0.13.8
# Byte-compiled at install, or each of a dozen processes that import torch would compile it at the first start.
	$(VENV)/bin/uv pip install --python $(RUN) --compile-bytecode \
	  --constraints requirements/cpu-constraints.txt --overrides requirements/cpu-overrides.txt \
	  --editable '.[cpu,dev,dicom]' ./packaging/vllm-alias
	touch $(STAMP)
	@echo "Installed. To type python in place of $(RUN), activate it: . $(VENV)/bin/activate"

# The Python that `make install` takes.
python:
	@echo $(PYTHON)

sglang: install $(SGLANG)

$(SGLANG): $(STAMP) requirements/sglang-cpu.txt packaging/sgl-kernel-stub/sgl_kernel/__init__.py
	$(VENV)/bin/uv pip install --python $(RUN) --compile-bytecode --no-deps \
	  --requirement requirements/sglang-cpu.txt ./packaging/sgl-kernel-stub
	touch $(SGLANG)

demo: install
	$(RUN) train_agent.py --task vqa --run-dir runs/demo-vqa --overwrite

demo-grounding: install
	$(RUN) train_agent.py --task grounding --run-dir runs/demo-grounding --overwrite

# The repository ships the warm start that the demo begins with; it is made anew only where it was deleted.
BROWSER := scripts/tiny_models/browser_checkpoint
$(BROWSER)/config.json: | $(STAMP)
	$(RUN) -m scripts.tiny_models.browser --output $(BROWSER)

demo-browser: install $(BROWSER)/config.json
	$(RUN) data_utils.py episodes miniwob --envs click-test:1 click-test-2:1 click-test-2:1 click-button-sequence:2 \
	  --train 384 --val 96 --option shade=true --output data/miniwob
	$(RUN) train_agent.py --task miniwob --model $(BROWSER) --run-dir runs/demo-browser --overwrite --n-runners 4 \
	  --data-path data/miniwob/train.parquet --val-data-path data/miniwob/val.parquet --max-steps 30 \
	  agent.answer_format=bbox data.max_prompt_length=256 trainer.test_freq=15 app.sight.val_rows=24 \
	  data.train_batch_size=12 actor_rollout_ref.actor.ppo_mini_batch_size=12 actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=48 \
	  actor_rollout_ref.actor.freeze_vision_tower=true actor_rollout_ref.actor.optim.lr=3.0e-4 \
	  actor_rollout_ref.actor.optim.lr_scheduler_type=cosine actor_rollout_ref.actor.optim.min_lr_ratio=0.1

test: install lint test-fast test-slow test-e2e

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy .

test-fast: install
	$(RUN) -m pytest -m "not e2e and not slow" -n 2

test-slow: install
	$(RUN) -m pytest -m "slow and not e2e" -n 2

# Two at a time: a start keeps one core busy, and a file's tests share its runs.
test-e2e: install
	$(RUN) -m pytest -m "e2e and not long" -n 2 --dist loadfile --durations 12

test-long: install
	$(RUN) -m pytest -m "e2e and long"

clean:
	rm -rf $(VENV) runs build
