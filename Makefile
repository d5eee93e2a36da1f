# Everything runs from here; each target does its own set-up. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

UV := .venv-uv/bin/uv
PYTHON := .venv/bin/python
# The first environment is what `sam build` looks for: a python3.13 on the path.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export SAM_CLI_TELEMETRY := 0

.PHONY: help setup run env events status publish failures redrive notification cancel forget pause resume check-bot templates rotate-webhook restore-ledger republish deploy undeploy test unit integration faults faults-short template e2e browser pictures bench cost check audit format schemas lock build clean mutants

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.done .venv-ministack/.done .venv-sam/.done .venv-checkov/.done ## make the environments (every other target does it by itself)

# A command that fails has said why. To that make would add `*** [publish] Error 1`, so it is ended by a
# signal of which neither it nor a shell says anything; its exit code is 141. Where SIGPIPE is ignored it is 2.
OR_END = || { kill -s PIPE $$PPID; exit 1; }
# Of Ctrl-C the command hears as well, and ends what it started; the shell waits for it.
INTERRUPTIBLE = trap : INT;
STEP = @$(INTERRUPTIBLE) python3 .ci/step.py

# What an interruption left half done is made anew.
.venv-uv/.done: .ci/uv.txt
	@rm -rf .venv-uv
	$(STEP) "uv, which installs the rest" "needs python3 with its venv module (Debian: python3-venv), and PyPI" bash -c \
	  'python3 -m venv .venv-uv && .venv-uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .ci/uv.txt' $(OR_END)
	@touch $@

.venv-uv/.python: .venv-uv/.done .python-version
	$(STEP) "Python 3.13" "not installed, and cannot be downloaded: install it (Debian: python3.13, macOS: brew install python@3.13)" bash -c \
	  '{ $(UV) python find 3.13 || $(UV) python install 3.13; } 2> /dev/null' $(OR_END)
	@touch $@

.venv/.done: .venv-uv/.python uv.lock
	@[ -e $@ ] || rm -rf .venv
	$(STEP) "Packages of the project, in .venv" "needs PyPI, or uv's cache" $(UV) sync --quiet --locked --group dev $(OR_END)
	@touch $@

.venv-%/.done: .venv-uv/.python uv.lock
	@[ -e $@ ] || rm -rf .venv-$*
	$(STEP) "Packages of $*, in .venv-$*" "needs PyPI, or uv's cache" \
	  env UV_PROJECT_ENVIRONMENT=.venv-$* $(UV) sync --quiet --locked --only-group $* $(OR_END)
	@touch $@

.venv-browser/.done: .venv-uv/.python uv.lock
	@[ -e $@ ] || rm -rf .venv-browser
	$(STEP) "Packages of the browser's tests, in .venv-browser" "needs PyPI, or uv's cache" \
	  env UV_PROJECT_ENVIRONMENT=.venv-browser $(UV) sync --quiet --locked --group browser $(OR_END)
	@touch $@

# Of the environments it needs three, and no linter's.
LOCAL = .venv/.done .venv-ministack/.done .venv-sam/.done

run: $(LOCAL) ## deploy to a local AWS, publish events/, show what became of each (ARGS=--once stops then)
	@$(INTERRUPTIBLE) $(PYTHON) -m tests.local $(ARGS) $(OR_END)

env: .venv/.done ## what an application of one's own needs to use what `make run` keeps up: eval "$(make env)"
	@$(INTERRUPTIBLE) $(PYTHON) -m tests.local.producer $(ARGS) $(OR_END)

events: .venv/.done ## status events as JSON, one on each line, from what `make run` keeps up, until Ctrl-C
	@$(INTERRUPTIBLE) $(PYTHON) -m tests.local.events $(ARGS) $(OR_END)

# STACK=name means a deployed stack; without it, the local one that `make run` keeps up.
STACK_OPTION = $(if $(STACK),--stack $(STACK))
COMMAND = $(INTERRUPTIBLE) CALLED_BY=make $(PYTHON) -m functions.cli

failures: $(LOCAL) ## what lies on the dead-letter queue (STACK=name: of a deployed stack; ARGS=--help)
	@$(COMMAND) failures $(STACK_OPTION) $(ARGS) $(OR_END)

redrive: $(LOCAL) ## put dead letters back; without ARGS=--execute a dry run (STACK=name; ARGS=--help)
	@$(COMMAND) redrive $(STACK_OPTION) $(ARGS) $(OR_END)

status: $(LOCAL) ## one screen: bots, queues, dead letters, alarms, the last hour (STACK=name)
	@$(COMMAND) status $(STACK_OPTION) $(ARGS) $(OR_END)

publish: $(LOCAL) ## put requests on the queue (FILE=my-request.json; STACK=name)
	@$(COMMAND) publish $(FILE) $(STACK_OPTION) $(ARGS) $(OR_END)

notification: $(LOCAL) ## how it goes with a notification (ID=id BOT=name; STACK=name)
	@$(COMMAND) notification $(ID) $(if $(BOT),--bot $(BOT)) $(STACK_OPTION) $(ARGS) $(OR_END)

cancel: $(LOCAL) ## take a notification back that has not gone out (ID=id BOT=name; STACK=name)
	@$(COMMAND) cancel $(ID) $(if $(BOT),--bot $(BOT)) $(STACK_OPTION) $(ARGS) $(OR_END)

forget: $(LOCAL) ## find what is held about a number, which is asked for; ARGS=--yes erases it (STACK=name)
	@$(COMMAND) forget $(STACK_OPTION) $(ARGS) $(OR_END)

pause: ## keep a bot still (BOT=name; STACK=name)
resume: ## resume a bot that is paused, or whose breaker is open (BOT=name; STACK=name)
check-bot: ## try a bot's key, URL and channel (BOT=name; STACK=name)
rotate-webhook: ## a new webhook secret for a bot; ARGS=--leaked drops the one before at once (BOT=name; STACK=name)
pause resume check-bot rotate-webhook: $(LOCAL)
	@$(COMMAND) $@ $(BOT) $(STACK_OPTION) $(ARGS) $(OR_END)

templates: $(LOCAL) ## what BLiP lists, and what each needs (BOT=name; ARGS=--sync asks BLiP at once; STACK=name)
	@$(COMMAND) templates $(if $(BOT),--bot $(BOT)) $(STACK_OPTION) $(ARGS) $(OR_END)

restore-ledger: $(LOCAL) ## copy what the ledger lacks from a restored table (FROM=table; STACK=name)
	@$(COMMAND) restore-ledger $(FROM) $(STACK_OPTION) $(ARGS) $(OR_END)

republish: $(LOCAL) ## publish status events of the ledger again (SINCE=2026-11-26T00:00:00Z; FROM=key to continue; STACK=name)
	@$(COMMAND) republish "$(SINCE)" $(if $(FROM),--from "$(FROM)") $(STACK_OPTION) $(ARGS) $(OR_END)

# STAGE is one of functions/stages/. ARGS holds further parameters of the template, as Name=value.
STAGE_OPTIONS = --stage "$(STAGE)" $(if $(REGION),--region "$(REGION)") $(if $(YES),--yes)

deploy: $(LOCAL) ## build and deploy a stage (STAGE=dev ALLOWED=+5531…; REGION=, ALARM_EMAIL=, YES=1, ARGS="Name=value …")
	@$(COMMAND) deploy $(STAGE_OPTIONS) $(if $(ALLOWED),--allowed "$(ALLOWED)") \
	  $(if $(ALARM_EMAIL),--alarm-email "$(ALARM_EMAIL)") $(ARGS) $(OR_END)

undeploy: $(LOCAL) ## delete a stage, but for its tables; says what is kept (STAGE=dev; REGION=, YES=1)
	@$(COMMAND) undeploy $(STAGE_OPTIONS) $(OR_END)

test: check unit integration faults-short template e2e browser ## everything that CI runs

unit: .venv/.done ## rules, transitions, the outcome tables
	$(PYTHON) -m pytest -q -n auto tests/unit $(ARGS)

integration: setup ## conditions, timeouts, handlers whole; moto and the simulator
	$(PYTHON) -m pytest -q -n auto tests/integration $(ARGS)

faults-short: setup ## nothing lost, nothing twice: simulated faults and real ones, in a short form
	$(PYTHON) -m pytest -q -n auto tests/faults --ignore tests/faults/test_deployed.py $(ARGS)
	$(PYTHON) -m pytest -q -n 3 tests/faults/test_deployed.py $(ARGS)

faults: setup ## the same at full size, in an hour or more; prints a table (ARGS=words: some rows)
	@PYTHONPATH=layers/notifier $(PYTHON) -m tests.faults $(ARGS)

mutants: .venv/.done ## mutation testing of the use cases; half an hour, not part of test
	@nice -n 19 $(PYTHON) -m tests.mutants

template: setup ## the transformed template: lint and what no linter checks
	$(PYTHON) -m pytest -q tests/template $(ARGS)

e2e: setup ## the template built and deployed into the local AWS
	$(PYTHON) -m pytest -q -n 2 --dist loadfile tests/e2e $(ARGS)

browser: setup .venv-browser/.done ## the local console in headless Chromium, if there is one on this machine
	.venv-browser/bin/python -m pytest -q tests/browser $(ARGS)

pictures: setup .venv-browser/.done ## README's pictures, from a real run (needs Chromium)
	@PYTHONPATH=layers/notifier .venv-browser/bin/python -m tests.local.pictures

bench: setup ## against a textbook handler and the floor: time, CPU, calls, memory (a quarter of an hour; leave the machine alone; ARGS=memory: only what a MemorySize costs)
	@PYTHONPATH=layers/notifier $(PYTHON) -m tests.benchmarks $(ARGS)

cost: .venv/.done ## dollars per million, and what a day's volume needs, from the last bench
	@PYTHONPATH=layers/notifier $(PYTHON) -m tests.benchmarks.cost

check: .venv/.done ## ruff, mypy, import rules, formatting, workflows, generated files up to date
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy layers/notifier/notifier functions tests
	PYTHONPATH=layers/notifier .venv/bin/lint-imports
	$(PYTHON) -m tests.schemas --check
	.venv/bin/zizmor --offline --quiet --no-progress .
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(UV) lock --check --quiet
	$(UV) export --quiet --locked --no-emit-project --no-header --no-annotate | diff layers/dependencies/requirements.txt - || \
	  { echo "layers/dependencies/requirements.txt is not what uv.lock says: make lock" >&2; exit 1; }

audit: .venv/.done ## known vulnerabilities of what the layer holds; fails where the database is not reached
	$(PYTHON) -m pip_audit --strict --require-hashes --disable-pip -r layers/dependencies/requirements.txt

format: .venv/.done ## put the code in order
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

schemas: .venv/.done ## write events/schema again from the models
	$(PYTHON) -m tests.schemas

lock: .venv-uv/.done ## lock the dependencies and export the layer's
	$(UV) lock
	$(UV) export --quiet --locked --no-emit-project --no-header --no-annotate --output-file layers/dependencies/requirements.txt

build: setup ## sam build
	.venv-sam/bin/sam build

clean: ## remove what the other targets made
	rm -rf .aws-sam .local .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .mutants
