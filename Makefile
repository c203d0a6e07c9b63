# What a person types: install, demo, test, check, bench. Each sets up what it needs; a stamp file
# under .venv remembers what was done, so nothing is done twice. TORCH chooses another PyTorch than the
# locked one for a new .venv, as in make install TORCH='==2.8.0'; WORKERS is how many processes run tests.
PYTHON ?= python3
TORCH ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
NATIVE := setup.py pyproject.toml $(shell find csrc -type f)
CXX_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' -o -name '*.inc')
BENCHMARKS := $(basename $(notdir $(shell grep -l __main__ benchmarks/*.py)))

.PHONY: help install demo test test-quick check bench docs wheel clean
help:
	@echo "make install     make $(VENV) with the locked versions and build the extensions"
	@echo "make demo        pretrain, fine-tune, reward-model and align on this machine: runs/demo"
	@echo "make test        run the tests; make test ARGS='-k name tests/unit' runs some of them"
	@echo "make test-quick  unit tests, and operators on the CPU: under two minutes"
	@echo "make check       format, lint, types, import order, size limits, commands of the docs"
	@echo "make bench       time megalite beside its peers, a JSON object a line"
	@echo "make docs        the pages of docs/ as a site, links checked: build/site/index.html"
	@echo "make wheel       dist/megalite-...+torchX.Y-....whl, for machines with this PyTorch and no compiler"
	@echo "make clean       remove $(VENV), build products and caches; runs/ stays"

install: $(VENV)/built

demo: $(VENV)/built
	$(BIN)/python -m megalite demo

test: $(VENV)/built
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

test-quick: $(VENV)/built
	$(BIN)/python -m pytest -m "not slow and not dist" -k "not simt" tests/unit tests/kernels $(ARGS)

check: $(VENV)/built
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_rooms.py tests/unit/test_docs.py

bench: $(VENV)/built
	@set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --json; done

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

wheel: $(VENV)/built
	release=$$($(BIN)/python -c 'import torch; print(".".join(torch.__version__.split(".")[:2]))') && \
	  $(BIN)/python setup.py -q egg_info --tag-build "+torch$$release" bdist_wheel --dist-dir dist
	@ls dist

clean:
	rm -rf $(VENV) build dist megalite.egg-info megalite/*.so .mypy_cache .pytest_cache .ruff_cache

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON): megalite needs Python 3.10 or later; say which: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "$(PYTHON): module venv is missing; on Debian: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/packages: requirements/dev.txt $(VENV)/created
	@echo "installing the versions of $< into $(VENV): minutes, once"
	@$(if $(TORCH),sed 's/^torch==.*/torch$(TORCH)/',cat) $< > $(VENV)/requirements.txt
	$(PIP) install -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/docs: requirements/docs.txt $(VENV)/created
	$(PIP) install -r $<
	@touch $@

$(VENV)/built: $(NATIVE) $(VENV)/packages
	@command -v $${CXX:-c++} > /dev/null || \
	  { echo "$${CXX:-c++}: a C++ compiler is needed; on Debian: apt install g++" >&2; exit 2; }
	@echo "building against the installed torch: minutes, once"
	$(PIP) install --no-build-isolation -e .
	@touch $@
