# make demo | test | bench | clean. Needs only make and a Python >= 3.11; everything else goes into .venv.
# Another Python: make demo PYTHON=/path/to/python3.12     Without ensurepip (Debian's python3-venv), uv is used if it is there.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
MODERN := import sys; sys.exit(sys.version_info < (3, 11))
NAMES := python3.13 python3.12 python3.11 python3 python3.14
# The first that can make a virtual environment, else the first that is new enough.
PYTHON ?= $(shell for code in 'import ensurepip, venv; $(MODERN)' '$(MODERN)'; do for name in $(NAMES); do \
	"$$name" -c "$$code" 2>/dev/null && command -v "$$name" && exit; done; done)

INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: demo test bench clean

demo: $(VENV)/.demo
	@$(BIN)/seatrial demo

test: $(VENV)/.test
	@$(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/.test
	@$(BIN)/python -m tests.bench $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -path ./.git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.made:
	@rm -rf $(VENV)
	@if "$(PYTHON)" -c 'import ensurepip, venv; $(MODERN)' 2>/dev/null; then "$(PYTHON)" -m venv $(VENV); \
	elif command -v uv >/dev/null; then uv venv --quiet --seed --python '>=3.11' $(VENV); \
	elif "$(PYTHON)" -c 'import pip, venv; $(MODERN)' 2>/dev/null; then "$(PYTHON)" -m venv --without-pip $(VENV) && \
		"$(PYTHON)" -m pip --python $(BIN)/python install --quiet pip; \
	elif "$(PYTHON)" -c '$(MODERN)' 2>/dev/null; then \
		echo "$(PYTHON) cannot make a virtual environment. Install its venv package (Debian, Ubuntu:" \
		     "apt install python3-venv) or uv, or name another Python: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	else echo "$(or $(PYTHON),python3) is not there or older than 3.11. Install one (Debian, Ubuntu:" \
		  "apt install python3 python3-venv), or uv, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@touch $@

# The demo installs what running needs; the tests add their tools on top.
$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@echo "setting up $(VENV) (once) ..."
	@$(INSTALL) --editable .
	@$(COMPILE)
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml
	@echo "setting up $(VENV) with the test tools (once) ..."
	@$(INSTALL) --editable '.[test]'
	@$(COMPILE)
	@touch $@ $(VENV)/.demo

# Without bytecode the first start takes seconds, and some clients give a server three. Its failures (test data that is
# no valid Python) do not matter.
COMPILE = $(BIN)/python -m compileall -q -j 0 $(VENV)/lib server tools tasks/*.py clients >/dev/null 2>&1 || true
