# `make` lists what there is. Everything runs in .venv, which needs nothing but Python 3.11 or newer to be made.

# The first that works and is new enough; say PYTHON=... to choose.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
INSTALLED := $(VENV)/.installed
TIDY := $(PY) .ci/tidy.py

DEMO_ARGS ?=
LAB_ARGS ?=
NBTEST_ARGS ?= --n-workers 2 --do-print --timing
BENCH_ARGS ?=
LOCK_ARGS ?= --upgrade
PYTEST_ARGS ?= -n 3 --dist loadscope --no-loadscope-reorder -v --durations 10

export PATH := $(CURDIR)/$(BIN):$(PATH)
export BENTOML_DO_NOT_TRACK := True
export PYTHONUNBUFFERED := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE VIRTUAL_ENV PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help install demo demo-platform docs test test-notebooks test-python test-long test-kill test-swap test-faults check bench-feature bench-service bench-platform bench-rollout servers servers-stop servers-install lab export format lock clean
.NOTPARALLEL:
.SUFFIXES:

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

install: $(INSTALLED) ## make .venv and install what constraints.txt pins

$(INSTALLED): pyproject.toml constraints.txt .ci/install.py
	@test -n "$(PYTHON)" || { echo "install: no Python 3.11 or newer found; say make install PYTHON=..." >&2; exit 1; }
	@$(PYTHON) .ci/install.py

demo: install ## card payments decided live by a model that came out of a notebook
	@$(TIDY) $(PY) -m mlpkg.examples.fraud.demo $(DEMO_ARGS)

demo-platform: export OMP_WAIT_POLICY = passive
demo-platform: install ## the demo on Kafka, Redis, PostgreSQL, object storage and Spark: the same bits as in one file
	@$(TIDY) $(UNSET) $(PY) tests/support/demo_platform.py --customers 400 --terminals 800 --live 1000 --rate 25 $(DEMO_ARGS)

test: test-notebooks test-python ## run every notebook, then tests/

# With no settings from outside, a model store of their own, and OpenMP threads that do not spin while they wait.
UNSET := env $(addprefix -u ,$(filter MLPKG_%,$(.VARIABLES)))
test-notebooks test-python test-long test-kill test-swap test-faults: export BENTOML_HOME = $(CURDIR)/build/$@/bentoml
test-notebooks test-python test-long test-kill test-swap test-faults: export OMP_WAIT_POLICY = passive

test-notebooks: install
	@rm -rf build/$@ && mkdir -p build/$@
	@echo "test: the notebooks"
	@$(TIDY) $(UNSET) $(BIN)/nbdev-test $(NBTEST_ARGS)

test-python: install
	@rm -rf build/$@ && mkdir -p build/$@
	@echo "test: tests/"
	@$(TIDY) $(UNSET) $(PY) -m pytest $(PYTEST_ARGS)

test-long: install ## the long forms of what is tested on random streams: thousands of them
	@rm -rf build/$@ && mkdir -p build/$@
	@echo "test: tests/, the long forms"
	@$(TIDY) $(UNSET) MLPKG_LONG=1 $(PY) -m pytest -n 2 --dist load -q tests/aggregates/test_conformance.py tests/features/test_streams.py tests/schema/test_door.py tests/schema/test_doors.py tests/schema/test_conditions.py tests/schema/test_clocks.py tests/schema/test_people.py tests/decisions/test_history.py tests/decisions/test_week_on_servers.py tests/store/conformance/test_store_machine.py tests/lab/test_messy_files.py tests/aggregates/test_oracle.py tests/lab/test_streaming.py

test-kill: install ## workers are killed a thousand times under load: what they acknowledged is there, once
	@rm -rf build/$@ && mkdir -p build/$@
	@echo "test: a thousand kills"
	@$(TIDY) $(UNSET) MLPKG_LONG=1 $(PY) -m pytest -v --durations 5 tests/store/test_kill.py

test-swap: install ## models take turns every second under a hundred thousand requests: none fails, none is of two models
	@rm -rf build/$@ && mkdir -p build/$@
	@echo "test: models that take turns"
	@$(TIDY) $(UNSET) MLPKG_LONG=1 $(PY) -m pytest -v --durations 5 tests/models/test_swap.py

test-faults: install ## parts of a store on servers fail under load: the table of what was lost and how soon it was back, in build/faults.json
	@rm -rf build/$@ && mkdir -p build/$@
	@echo "test: faults of servers"
	@$(TIDY) $(UNSET) $(PY) -m pytest -v --durations 5 tests/faults

check: install ## format, lint, types, imports, dependencies, notebooks, drift, pages, site (one: make check CHECKS=drift)
	@$(TIDY) $(PY) .ci/check.py $(CHECKS)

docs: install ## build the documentation site into build/site/html
	@$(TIDY) $(PY) .ci/build_docs.py

bench-feature bench-service bench-platform bench-rollout: export OMP_WAIT_POLICY = passive
bench-feature: install ## time the features beside their peers, in ten minutes at most, into build/bench.json
	@$(TIDY) $(UNSET) $(PY) benchmarks/features/run.py $(BENCH_ARGS)

bench-service: install ## time the decision service beside its peers, in ten minutes at most, into build/bench.json
	@$(TIDY) $(UNSET) $(PY) benchmarks/service/run.py $(BENCH_ARGS)

bench-platform: install ## time the platform beside its peers, in fifteen minutes at most, into build/bench.json
	@$(TIDY) $(UNSET) $(PY) benchmarks/platform/run.py $(BENCH_ARGS)

bench-rollout: install ## simulate canaries and time their guardrails, in ten minutes at most, into build/bench.json
	@$(TIDY) $(UNSET) $(PY) benchmarks/rollouts/run.py $(BENCH_ARGS)

# Not under tidy.py: these servers stay until servers-stop.
SERVERS := PYTHONPATH=tests/support $(PY) -m local_servers
servers: install ## start Kafka, Redis, PostgreSQL and S3 on free ports under build/servers, and say how to reach them
	@$(SERVERS) start build/servers

servers-stop: install ## stop what make servers started; the data stay
	@$(SERVERS) stop build/servers

servers-install: install ## fetch the jars of Kafka and build the S3 server, once for all checkouts; name what else is missing
	@$(SERVERS) install

lab: install ## JupyterLab on the state that settings.ini names
	@$(TIDY) $(PY) -m mlpkg.cli lab $(LAB_ARGS)

export: install ## format and clean the notebooks, write mlpkg/ from them
	@$(BIN)/ruff format --quiet nbs && $(BIN)/nbdev-clean && $(PY) .ci/export.py

format: install ## format everything that is written by hand, sort imports
	@$(BIN)/ruff check --quiet --select I,UP --fix $(wildcard nbs tests services benchmarks .ci)
	@$(BIN)/ruff format $(wildcard nbs tests services benchmarks .ci)

lock: install ## pin the newest versions that fit into constraints.txt (only what is missing: make lock LOCK_ARGS=)
	@mkdir -p build && cp constraints.txt build/constraints.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest $(LOCK_ARGS) --all-extras \
	   --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o build/constraints.txt pyproject.toml >/dev/null
	@{ echo "# Exactly what make install brings: every extra, every platform. Written by make lock."; \
	   cat build/constraints.txt; } > constraints.txt

clean: ## remove what was made, not the state; servers that run are killed
	@[ ! -d build/servers ] || $(SERVERS) remove build/servers
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name .git -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
