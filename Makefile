# `make serve` and `make test` set everything up. They need Python 3.11 or newer and access to PyPI.
# PYTHON= and VENV= select another interpreter and another directory.
VENV   ?= .venv
ARGS   ?=
PYTHON ?= $(or $(shell for p in python3 python3.13 python3.12 python3.11; do \
            "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; \
            done),python3)
BIN     = $(VENV)/bin
FLOORS  = $(VENV)-floors
PIP     = $(BIN)/python -m pip --disable-pip-version-check --quiet
# The versions that the tests ran with; `make LOCK= test` uses the newest ones instead.
LOCK   ?= $(wildcard constraints.txt)
INSTALL = $(PIP) install $(if $(LOCK),--constraint $(LOCK)) --editable
# The JupyterLab extension: its source, the bundle that is built from it, and its link in an environment.
LAB     = labextension
LAB_SOURCES = $(wildcard $(LAB)/src/*.ts $(LAB)/schema/*.json $(LAB)/style/*.css $(LAB)/*.json $(LAB)/build.mjs)
BUNDLE  = kbridge/labextension/package.json
# npm, and the Node that the bundler needs.
HAVE_NPM = npm --version >/dev/null 2>&1 && node -e 'const [a, b] = process.versions.node.split(".").map(Number); \
           process.exit(a > 22 || (a === 22 && b >= 12) || (a === 20 && b >= 19) ? 0 : 1)'
BUILD_LAB = cd $(LAB) && { [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --silent; } \
            && npm run --silent build
# $(call PUT_LAB,cp -r,ENVIRONMENT) copies the bundle, $(call PUT_LAB,ln -s,ENVIRONMENT) links it.
PUT_LAB = dir=$(2)/share/jupyter/labextensions/@kbridge && mkdir -p $$dir && rm -rf $$dir/jupyterlab && \
          $(1) $(CURDIR)/kbridge/labextension $$dir/jupyterlab

# The compiled part needs a C compiler, and the headers of this Python.
HAVE_CC = command -v $${CC:-cc} >/dev/null && test -f "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"
SPEEDUPS = $(wildcard speedups/*.c speedups/*.py speedups/*.toml)

.PHONY: help serve test test-floors labextension vendor speedups soak check docs links format mutants coverage bench recording lock clean
.DELETE_ON_ERROR:

help:                   ## this text
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 14

serve: $(VENV)/.serve   ## run the bridge on 127.0.0.1 (ARGS="--port 9999" adds options)
	@$(BIN)/kbridge $(ARGS)

# Many tests wait for something, so two cores carry three of them at a time. A worker takes tests of one
# file after the other, and so makes few of the servers that the tests of a file share.
test: $(VENV)/.lab $(VENV)/.speedups ## the whole suite (ARGS="-k wire" narrows it)
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

# The tests that use jupyter_client, ipykernel, jupyter_server, SQLAlchemy, psutil and traitlets; less than
# five minutes on two cores. The extension in the lowest JupyterLab and Notebook is tested with
# FLOOR_TESTS=tests/integration/test_labextension.py; JupyterLab 4.2.0 sometimes fails by itself then.
FLOOR_TESTS = tests/kernels tests/connect/test_files.py tests/connect/test_mixin.py \
              tests/jupyter/test_connection.py tests/server/api/test_kernelspecs.py \
              tests/integration/test_kernel.py
# Warnings of the old versions are ignored: jupyter_core leaves event loops to the garbage collector and
# requires JUPYTER_PLATFORM_DIRS, jupyter_client parses dates without a year.
OLD = -W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning \
      -W 'ignore:Parsing dates involving a day:DeprecationWarning'
test-floors: $(FLOORS)/.floors ## tests with the lowest versions that pyproject.toml allows
	@if [ -f $(BUNDLE) ]; then $(call PUT_LAB,cp -r,$(FLOORS)); fi # the old jupyterlab_server follows no link
	JUPYTER_PLATFORM_DIRS=1 $(FLOORS)/bin/python -m pytest -n 2 -p no:cacheprovider $(OLD) $(FLOOR_TESTS) $(ARGS)

labextension: $(VENV)/.dev ## build the JupyterLab extension, and link it into the environment
	@$(HAVE_NPM) || { echo 'the extension needs npm, and Node 20.19, 22.12 or newer' >&2; exit 1; }
	@$(BUILD_LAB)
	@$(call PUT_LAB,ln -s,$(VENV))

vendor: $(VENV)/.dev    ## write the libraries of the pages again, from npm (ARGS="--check" compares)
	@$(BIN)/python tools/vendor.py $(ARGS)

speedups: $(VENV)/.dev  ## compile the optional part, and install it into the environment
	@$(HAVE_CC) || { echo 'the compiled part needs a C compiler and the headers of Python' >&2; exit 1; }
	@$(PIP) install --no-build-isolation --force-reinstall ./speedups

soak: $(VENV)/.dev      ## slow, dying and hostile clients for five minutes (ARGS="--minutes 1 --seed 7")
	$(BIN)/python -m tests.soak $(ARGS)

check: $(VENV)/.dev     ## format, lint, types, English, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@if [ -d $(LAB)/node_modules ]; then echo npm run check; npm --prefix $(LAB) run --silent check \
	&& node client-js/tests/check.js; \
	else echo "TypeScript: not checked without $(LAB)/node_modules, which \`make labextension\` makes"; fi
	@if command -v node >/dev/null; then echo $(BIN)/pyright; $(BIN)/pyright --project pyproject.toml --pythonpath $(BIN)/python; \
	else echo "pyright: needs node, public types checked by mypy only"; fi
	$(BIN)/python tools/prose.py
	$(BIN)/python -m pytest -q tests/test_layers.py
	@if [ -x $(BIN)/hadolint ]; then echo $(BIN)/hadolint Dockerfile; $(BIN)/hadolint Dockerfile; \
	else echo "hadolint: no build for this machine on PyPI, Dockerfile not linted"; fi

docs: $(VENV)/.dev      ## build the documentation site into build/site
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs/_site -d build/doctrees $(ARGS) . build/site
	@echo "build/site/index.html"

# Asks other hosts, so CI does not run it. Links within the site are checked by `make docs` and tests/test_site.py.
links: $(VENV)/.dev     ## ask for each address on other hosts that a page names
	$(BIN)/python tools/links.py $(ARGS)

format: $(VENV)/.dev    ## format the code as `check` requires
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	@if [ -d $(LAB)/node_modules ]; then npm --prefix $(LAB) run --silent format; node client-js/tests/check.js --write; fi

mutants: $(VENV)/.dev   ## mutation tests of wire, flow and hub (ARGS="wire --count 50 --seed 2")
	$(BIN)/python tools/mutants.py $(ARGS)

# Servers in separate processes are not measured, so the integration tests would add little.
coverage: $(VENV)/.dev  ## lines that the tests run, by package
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q -m "not browser and not slow" --ignore=tests/integration $(ARGS)
	$(BIN)/python tools/coverage_table.py

bench: $(VENV)/.dev     ## compare with jupyter_server and an old commit; print ratios, plot into docs/
	$(BIN)/python -m benchmarks $(ARGS)

# Needs Chromium, and npm for the JupyterLab extension.
recording: $(VENV)/.lab ## record a reload of JupyterLab with and without kbridge, into docs/
	$(BIN)/python tools/record_reload.py $(ARGS)

lock: $(VENV)/.dev      ## update constraints.txt: the newest versions, for every supported Python
	$(PIP) install 'uv>=0.5'
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade \
	  --no-header --no-annotate --no-emit-index-url --output-file constraints.txt pyproject.toml

clean:                  ## remove the virtual environment, the built extension and caches
	rm -rf $(VENV) $(FLOORS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .nox .coverage .cache/baselines build dist
	rm -rf kbridge/labextension $(LAB)/node_modules $(LAB)/lib $(LAB)/.test speedups/build speedups/*.egg-info

# The interpreter exists even if venv fails afterwards because pip is missing. Remove it then, or the
# next call would take the environment for complete.
$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'kbridge needs Python 3.11 or newer; "$(PYTHON)" is not. Name one: make PYTHON=python3.12 ...' >&2; \
	  exit 1; }
	@echo "$(VENV): a virtual environment of $$($(PYTHON) --version)"
	@"$(PYTHON)" -m venv $(VENV) || { rm -f $@; \
	  echo 'could not make a virtual environment; on Debian: apt-get install python3-venv' >&2; exit 1; }

# Stamp files: packages are installed again only after pyproject.toml has changed.
$(VENV)/.serve: $(BIN)/python pyproject.toml $(LOCK)
	@echo "$(VENV): installing kbridge and ipykernel"
	@$(INSTALL) '.[kernel]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml $(LOCK)
	@echo "$(VENV): installing kbridge and what tests, checks and benchmarks need"
	@$(INSTALL) '.[dev]'
	@touch $@ $(VENV)/.serve

# Built again after its sources have changed. Without npm, the tests that need it are skipped (in CI, they fail).
$(BUNDLE): $(LAB_SOURCES) | $(VENV)/.dev
	@if $(HAVE_NPM); then echo "$(LAB): building the JupyterLab extension"; $(BUILD_LAB); \
	else echo "$(LAB): not built, because npm is missing or Node is older than 20.19"; fi

# Compiled again after its source has changed. Without a compiler, the tests of it are skipped (in CI, they fail).
$(VENV)/.speedups: $(VENV)/.dev $(SPEEDUPS)
	@if $(HAVE_CC); then echo "speedups: compiling"; $(PIP) install --no-build-isolation --force-reinstall ./speedups; \
	else echo "speedups: not compiled, because a C compiler or the headers of Python are missing"; fi
	@touch $@

# A link instead of the copy that pip has made, so that a page shows the newest bundle.
$(VENV)/.lab: $(VENV)/.dev $(BUNDLE)
	@if [ -f $(BUNDLE) ]; then $(call PUT_LAB,ln -s,$(VENV)); touch $@; fi

$(FLOORS)/.floors: $(BIN)/python pyproject.toml tests/support/floors.py | $(BUNDLE)
	@echo "$(FLOORS): installing the lowest versions that pyproject.toml allows"
	@$(BIN)/python -m venv --clear $(FLOORS)
	@$(BIN)/python tests/support/floors.py >$(FLOORS)/floors.txt
	@$(FLOORS)/bin/python -m pip --disable-pip-version-check --quiet install -r $(FLOORS)/floors.txt
	@$(FLOORS)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --editable .
	@touch $@
