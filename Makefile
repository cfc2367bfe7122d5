# Every target sets up what it needs: `make demo` and `make test` work in a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MOLECULES ?= 4

PYSCF ?= 2.8.0

.PHONY: demo benchmark data model test test-pyscf test-core test-lowest test-dist test-slow lint types docs clean

demo: $(VENV)/.core
	$(BIN)/python -m pyscf_deqh.benchmark --init minao 1e --n $(MOLECULES)

benchmark: $(VENV)/.core
	$(BIN)/python -m pyscf_deqh.benchmark --init minao 1e --json benchmark.json

# Labels for the next default model, and four steps of each SCF: some eight hours of one core. The
# same command goes on after an end. Status 1 says that there are molecules that failed.
data: $(VENV)/.data
	for part in test geometries; do \
		$(BIN)/python -m pyscf_deqh.data label models/training-data/$$part.smi \
			--out data/b3lyp-def2svp.store --precision float32 --density-fit \
			--conv-tol 1e-8 --steps 4; status=$$?; test $$status -le 1 || exit $$status; \
	done

# The next default model, on two cores in seven hours; the same command goes on after an end.
model: $(VENV)/.model
	$(BIN)/python -m pyscf_deqh.train --config models/training-data/so2net.yaml --resume
	$(BIN)/python -m pyscf_deqh.train export data/runs/b3lyp-def2svp data/b3lyp-def2svp --half

# One process with one thread for each core; the tests of a file share what it sets up.
PARALLEL := --numprocesses auto --dist loadscope --no-loadscope-reorder
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

# What touches PySCF, on another version of it.
AGAINST_PYSCF := plugin cycles diis solvents fitted refine shells reference settings_of_the_user \
	other_packages faults memory report starts points states cost objects
test-pyscf: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/pyscf-$(PYSCF) \
		pyscf==$(PYSCF)
	PYTHONPATH=$(VENV)/pyscf-$(PYSCF) OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
		$(PARALLEL) $(AGAINST_PYSCF:%=tests/test_%.py)

# What a user installs: on another Python, and with the lowest versions of all but PyTorch.
CORE := plugin cycles starts settings_of_the_user report imports
RUN_CORE = $(BIN)/python -m pip install --quiet pytest pytest-xdist && OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest $(PARALLEL) $(CORE:%=tests/test_%.py)
test-core: $(VENV)/.core
	$(RUN_CORE)

test-lowest:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/uv pip install --quiet --python $(BIN)/python --resolution lowest-direct -e . \
		"torch==$$($(BIN)/python -c 'import torch; print(torch.__version__)')"
	$(RUN_CORE)

# What pip makes of the sources, away from them.
test-dist: $(VENV)/.dev
	rm -rf build/dist
	$(BIN)/python -m build --outdir build/dist . > /dev/null
	for kind in whl tar.gz; do \
		folder=$(abspath $(VENV))/from-$$kind; rm -rf $$folder && \
		$(BIN)/python -m pip install --quiet --no-deps --target $$folder build/dist/*.$$kind && \
		PYTHONPATH=$$folder $(BIN)/pytest -q tests/test_imports.py tests/test_examples.py && \
		(cd / && PYTHONPATH=$$folder $(abspath $(BIN))/python -c \
			"import pyscf_deqh; assert '/from-$$kind/' in pyscf_deqh.__file__") || exit 1; \
	done

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

# The tutorial in it runs; warnings are errors.
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

# Which extras are in place is remembered in the environment itself.
$(VENV)/.core: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.data: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[embed]'
	touch $@ $(VENV)/.core

$(VENV)/.model: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train]'
	touch $@ $(VENV)/.core

$(VENV)/.dev: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) build dist *.egg-info
