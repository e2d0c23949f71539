# Everything needs Python >= 3.11 and make, nothing else. PYTHON picks the interpreter: make setup PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev,export,sample,vision
UV := .uv/bin/uv
RUN := $(VENV)/bin/python
comma := ,
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
TEST_WORKERS ?= 2

.PHONY: setup demo test test-all lint lock clean

setup: $(STAMP)

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

# the lock only constrains: what is installed is what the extras ask for, in the locked versions
$(STAMP): $(UV) pyproject.toml requirements.lock
	test -x $(RUN) || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --compile-bytecode --python $(RUN) --constraint requirements.lock --editable '.[$(EXTRAS)]'
	touch $@

demo: setup
	$(RUN) -m apps.forecasting fit --config configs/forecasting/demo.yaml

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_WORKERS) -m 'not slow'

test-all: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_WORKERS)

lock: $(UV)
	$(UV) pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 --all-extras --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) .uv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
