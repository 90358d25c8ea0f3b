# Needs only Python >= 3.10 (with venv) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# `make demo RUN=DIR` chooses another, which must not be there: nothing is removed. The default is, first. Not what the environment calls so.
RUN := runs/demo
# Where torch and torchvision come from, such as PyTorch's index of builds without CUDA. Default: pip's own.
TORCH_INDEX ?=
TORCH := $(if $(TORCH_INDEX),$(VENV)/.torch)
# constraints.txt names versions that need Python 3.11; on 3.10 pip chooses
TESTED := $$($(BIN)/python -c 'import sys; print("-c constraints.txt" * (sys.version_info >= (3, 11)))')
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check $(TESTED)

# The environments of the lowest versions that pyproject.toml declares, and of the newest there are, for Python 3.10 or later
LOWEST := .venv-lowest
NEWEST := .venv-newest
CORE := -m "not slow" tests/models tests/implicit tests/hopfield tests/test_core.py

# How long the check of a GPU may take, and where CIFAR-10 lies: `make gpu DATA=DIR`. Not what the environment calls so.
MINUTES := 8
DATA := data

.PHONY: demo gpu test test-slow test-elsewhere test-coming-from test-dense test-loggers test-remote test-lowest test-newest lint docs clean

demo: $(VENV)/.installed  ## train on handwritten digits, evaluate, draw a prediction
	$(if $(filter file,$(origin RUN)),rm -rf runs/demo)
	$(BIN)/imixer train --out "$(RUN)"
	$(BIN)/imixer evaluate "$(RUN)"
	$(BIN)/imixer predict "$(RUN)"

test: lint  ## lint, types, tests: what CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

test-slow: $(VENV)/.installed-test  ## the tests that take longer
	$(BIN)/python -m pytest -m slow

test-elsewhere: $(VENV)/.installed-test  ## the tests with other tools, of which the large ones are installed first
	$(INSTALL) -e '.[elsewhere]'
	$(BIN)/python -m pytest tests/elsewhere tests/analysis/test_attribution.py tests/models/test_called_not_read.py

# hflayers comes from its repository alone, and is skipped
test-coming-from: $(VENV)/.installed-test  ## the page "Coming from ..." with the libraries it compares, which are installed first
	$(INSTALL) -e '.[coming-from]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/elsewhere/test_coming_from.py

# anomalib asks for an older jsonargparse than imixer has: it comes alone, with what its two models import
test-dense: $(VENV)/.installed-test  ## the tests with heads for feature maps, whose libraries are installed first
	$(INSTALL) -e '.[dense]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps anomalib einops freia kornia kornia-rs omegaconf pandas platformdirs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/models/test_dense.py tests/training/test_foreign_weights.py

test-loggers: $(VENV)/.installed-test  ## the loggers of other services, which are installed first
	$(INSTALL) -e '.[wandb,mlflow]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/training/test_loggers.py

test-remote: $(VENV)/.installed-test  ## streamed images on an object server of its own, which is installed first
	$(INSTALL) -e '.[object-server]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/training/test_streaming.py

test-lowest: $(LOWEST)/.installed  ## the tests of the core with the lowest versions that are declared
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(CORE)

test-newest: $(NEWEST)/.installed  ## the same tests with the newest versions
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest $(CORE)

gpu: $(VENV)/.installed-test  ## on a GPU: check, measure and train within minutes, then the tests marked cuda and the benchmarks
	code=0; \
	$(BIN)/python -m imixer.gpu_check --minutes $(MINUTES) $(if $(filter file,$(origin DATA)),$(if $(wildcard data),--data_dir data),--data_dir "$(DATA)") || code=1; \
	$(BIN)/python -m pytest -m cuda || code=1; \
	$(BIN)/python benchmarks/step.py --pairs laptop s16_224 --batches 512 --modes train || code=1; \
	$(BIN)/python benchmarks/train.py --batch 512 || code=1; \
	$(BIN)/python benchmarks/data.py --batch 512 --step || code=1; \
	exit $$code

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-test $(VENV)/.installed-docs  ## the documentation in site/, its links and samples checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -m "not slow" tests/test_docs.py tests/test_notebook.py
	@echo 'to read it: $(BIN)/python -m http.server --directory site'

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "imixer needs Python 3.10 or newer, this is " + sys.version'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.torch: $(VENV)/bin/python  # without what they need, which comes from pip's own index below
	$(INSTALL) --no-deps --index-url $(TORCH_INDEX) torch torchvision
	touch $@

$(VENV)/.installed: $(TORCH) $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[train]'
	touch $@

$(VENV)/.installed-test: $(TORCH) $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(TORCH) $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[docs]'
	touch $@ $(VENV)/.installed

# uv resolves to the lowest; the lowest torch may come from TORCH_INDEX, as above.
$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip compile --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --extra test-core pyproject.toml -o $(LOWEST)/lowest.txt
ifneq ($(TORCH_INDEX),)
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -c $(LOWEST)/lowest.txt --no-deps --index-url $(TORCH_INDEX) torch torchvision
endif
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -c $(LOWEST)/lowest.txt -e '.[test-core]'
	touch $@

$(NEWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(NEWEST)
ifneq ($(TORCH_INDEX),)
	$(NEWEST)/bin/python -m pip install --disable-pip-version-check --no-deps --index-url $(TORCH_INDEX) torch torchvision
endif
	$(NEWEST)/bin/python -m pip install --disable-pip-version-check -e '.[test-core]'
	touch $@

clean:  ## what was built; no run is touched
	rm -rf $(VENV) $(LOWEST) $(NEWEST) site build dist .pytest_cache .mypy_cache .ruff_cache
