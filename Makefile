# `make demo` and `make test` set up what they need in .venv; nothing but Python 3.11 or newer is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
JOBS ?= 2
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.DEFAULT_GOAL := help
.PHONY: help bench demo docs test test-slow test-torchvision lint format clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -q -e .
	@touch $@

.venv/installed-dev: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -q -e ".[dev]"
	$(BIN)/python tests/support/fetch_transformers_tests.py
	@touch .venv/installed $@

demo: .venv/installed  ## Pre-train on the embedded images (runs/demo), and evaluate the benefit (runs/comparison).
	$(LAUNCH) -m hf_simmim pretrain
	$(LAUNCH) -m hf_simmim compare --checkpoint runs/demo

docs: .venv/installed-dev  ## Build the documentation into site/: open site/index.html, or with search: python -m http.server -d site.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: lint  ## Run the tests that end within minutes.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-slow: .venv/installed-dev  ## Run the tests that take longer.
	RUN_SLOW=1 $(BIN)/python -m pytest -m slow

test-torchvision: .venv/installed-dev  ## Test what needs torchvision (its image processor, pipelines, timm's encoders and augmentation), in an environment of its own.
	$(BIN)/python -m venv .venv-torchvision
	.venv-torchvision/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	.venv-torchvision/bin/python -m pip install --disable-pip-version-check -q --no-deps torchvision==0.28.0 timm==1.0.31
	.venv-torchvision/bin/python tests/support/fetch_transformers_tests.py
	.venv-torchvision/bin/python -m pytest tests/model/test_image_processing_simmim.py tests/model/test_transformers_common.py tests/model/test_timm.py tests/data/test_augmentation_timm.py tests/model/test_pipelines.py tests/model/test_remote_code.py -k "timm or pipelines or without_the_package or mage_processing or mage_processor or ImageProcess or processor"

bench: .venv/installed-dev  ## Measure speed and memory on processors (15 minutes on a quiet machine), and write the table of docs/measured.md.
	for encoder in "swin-tiny --batch_size 4" "swin-base --batch_size 2" "vit-base --batch_size 2"; do for dtype in float32 bfloat16; do \
		$(BIN)/python benchmarks/step.py --encoder $$encoder --dtype $$dtype --rounds 6 --modes ours "transformers sdpa" "transformers eager" || exit 1; \
		$(BIN)/python benchmarks/step_profile.py --encoder $$encoder --dtype $$dtype || exit 1; done; done
	$(BIN)/python benchmarks/loading_speed.py --rounds 5 --seconds 0.25
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python -m benchmarks.table

lint: .venv/installed-dev  ## Check style, types, and docstrings against signatures.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pydoclint -q src

format: .venv/installed-dev  ## Bring the code to the project's style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and all results.
	rm -rf .venv .venv-torchvision runs dist build site
