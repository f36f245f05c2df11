# What a person does with this project. `make help` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/sh
python := .venv/bin/python
bootstrap := tests/system/bootstrap.sh
locks := requirements.txt tests/system/requirements.txt tests/requirements.txt .ci/audit/requirements.txt
# Four tests at a time, which wait more than they work. A file's tests stay together, and files come in the order of
# tests/conftest.py. After a worker that has died there is no other, so that a test that hangs ends the run.
workers := -n 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
export COVERAGE_FILE := $(CURDIR)/.local/coverage/data
# The libraries are compiled once, not by each of two hundred processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: system-venv rabbitmq ## Show the whole system at work, from nothing: a sample of devices and their final statuses
	@$(python) -m tests.system demo

.PHONY: test
test: lint rabbitmq ## Run lint, types and every test on real servers, then the end-to-end tests with everything on
	$(python) -m coverage erase
	$(python) -m coverage run -m pytest $(workers) $(PYTEST_ARGS)
	$(if $(PYTEST_ARGS),,GUARDED=1 $(python) -m pytest $(workers) tests/e2e)
	$(python) -m coverage combine --quiet
	$(python) -m coverage report

.PHONY: test-guarded
test-guarded: test-venv rabbitmq ## Run that second pass alone: TLS on every link, tokens, sealing
	GUARDED=1 $(python) -m pytest $(workers) tests/e2e $(PYTEST_ARGS)

.PHONY: chaos
chaos: test-venv rabbitmq libfaketime ## Torture the system for half an hour, and judge its history (CHAOS_ARGS: see --help)
	@$(python) -m tests.chaos run $(CHAOS_ARGS)

.PHONY: chaos-mutants
chaos-mutants: test-venv rabbitmq libfaketime ## Sabotage the code line by line: does the checker notice?
	@$(python) -m tests.chaos mutants $(CHAOS_ARGS)

.PHONY: bench
bench: test-venv rabbitmq ## Measure what the machine can do, and what we make of it
	@$(python) -m tests.bench $(BENCH_ARGS)

.PHONY: up
up: system-venv $(if $(AMQP_URL),,rabbitmq) ## Keep the system running in the background (TLS=1: by TLS; AMQP_URL, DATABASE_URL: on your servers; TOKENS_FILE)
	@TLS=$(TLS) $(python) -m tests.system up

.PHONY: down
down: system-venv ## Stop what `make up` has started; its data stays
	@$(python) -m tests.system down

.PHONY: logs
logs: system-venv ## Follow the logs of `make up`
	@$(python) -m tests.system logs

.PHONY: token
token: system-venv ## Make a token for the API (NAME=, ROLES=, and perhaps DEVICES=, EXPIRES=)
	@$(python) -m service_b.tokens "$$NAME" "$$ROLES" --devices "$$DEVICES" --expires "$$EXPIRES"

.PHONY: lint
lint: test-venv ## Run every static check
	@.ci/lint

.PHONY: audit
audit: audit-venv ## Look for known vulnerabilities of everything that is pinned (asks the package index)
	@$(python) -m pip_audit --strict --disable-pip --require-hashes $(addprefix --requirement ,$(locks))

.PHONY: sbom
sbom: audit-venv ## List what the services are made of, with hashes: .local/sbom.json (CycloneDX)
	@$(python) -m cyclonedx_py requirements requirements.txt --pyproject pyproject.toml --output-reproducible \
		--output-file .local/sbom.json && echo "see .local/sbom.json"

.PHONY: lock
lock: test-venv ## Pin the dependencies of pyproject.toml anew
	@.ci/lock

.PHONY: system-venv test-venv audit-venv rabbitmq libfaketime
system-venv:
	@$(bootstrap) venv requirements.txt tests/system/requirements.txt
test-venv:
	@$(bootstrap) venv requirements.txt tests/system/requirements.txt tests/requirements.txt
audit-venv:
	@$(bootstrap) venv requirements.txt .ci/audit/requirements.txt
rabbitmq:
	@$(bootstrap) rabbitmq
libfaketime:
	@$(bootstrap) libfaketime
