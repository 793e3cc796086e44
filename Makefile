# `make help` lists the targets. Every stage takes RECIPE=... (a name in recipes/, or a path) and SET="a.b=value ...".
.DEFAULT_GOAL := help
SHELL := /bin/bash

RECIPE ?= digits
SET ?=
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# By content, not by time: touching a file installs nothing.
SETUP := $(VENV)/.softcache-$(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
SETTINGS := $(foreach setting,$(SET),--set '$(setting)')

.PHONY: help setup teacher teacher-targets encoding plan student baseline evaluate report status test test-slow bench bench-storage bench-gpu check format clean

help:  ## List the targets
	@echo "softcache: run a teacher once, cache its soft targets, train any number of students from the cache."
	@echo
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | awk -F'\t' '{ printf "  make %-16s %s\n", $$1, $$2 }'
	@echo
	@echo '  Settings: make student RECIPE=recipes/digits.toml SET="student.distillation.coefficient=0.5"'
	@echo '  The same without make: $(BIN)/softcache student digits --set student.distillation.coefficient=0.5'

$(SETUP):
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@rm -f $(VENV)/.softcache-* && touch $@

setup: $(SETUP)  ## Create .venv with the tested versions (the other targets do it when needed)

teacher: $(SETUP)  ## Train the teacher
	@$(BIN)/softcache teacher '$(RECIPE)' $(SETTINGS)

teacher-targets: $(SETUP)  ## Run the teacher once over every split; seal caches of its soft targets
	@$(BIN)/softcache teacher-targets '$(RECIPE)' $(SETTINGS)

encoding: $(SETUP)  ## Try every encoding on a sample of the teacher's outputs (to set one: softcache encoding RECIPE --write)
	@$(BIN)/softcache encoding '$(RECIPE)' $(SETTINGS)

plan: $(SETUP)  ## Say rows, bytes, time and price of the caches before they are made (PRICE=... for a device-hour)
	@$(BIN)/softcache plan '$(RECIPE)' $(SETTINGS) $(if $(PRICE),--per-hour '$(PRICE)')

student: $(SETUP)  ## Train the students from the cache (runs what is missing before it)
	@$(BIN)/softcache student '$(RECIPE)' $(SETTINGS)

baseline: $(SETUP)  ## Train the same students on labels alone
	@$(BIN)/softcache baseline '$(RECIPE)' $(SETTINGS)

evaluate: $(SETUP)  ## Compare teacher, students and baselines on the test split
	@$(BIN)/softcache evaluate '$(RECIPE)' $(SETTINGS)

report: $(SETUP)  ## Draw the comparison as one HTML page (several: softcache report --compare RUN RUN)
	@$(BIN)/softcache report '$(RECIPE)' $(SETTINGS)

status: $(SETUP)  ## Say what each stage would run, and why
	@$(BIN)/softcache status '$(RECIPE)' $(SETTINGS)

test: $(SETUP)  ## Run the tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-slow: $(SETUP)  ## Run the longer proofs as well
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow or not slow"

bench: $(SETUP)  ## Measure speed and memory; writes benchmarks/RESULTS.md (SOFTCACHE_DATA: the folder of Fashion-MNIST)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks

bench-storage: $(SETUP)  ## Compare caches with other ways of storing soft targets; writes benchmarks/RESULTS.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers/requirements-no-deps.txt
	$(BIN)/python -W ignore -m benchmarks storage

bench-gpu: $(SETUP)  ## Measure teacher-targets and a student's step on the GPU, under 5 minutes (small models where there is none)
	$(BIN)/python -W ignore -m benchmarks.gpu

check: $(SETUP)  ## Format, lint, types and tests: what must be green before a commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

format: $(SETUP)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove runs/ (results); never touches caches/
	rm -rf runs
