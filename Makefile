# Every target does its own set-up: on a fresh Debian or Ubuntu with Python 3.11 or newer, with a GPU
# or without, `make test` or `make demo` is the whole installation. See `make help`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Options: make test TORCH=torch==2.14.1 PIP_ARGS="--index-url ..." PYTEST_ARGS="-k rope"
SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(SUPPORTED)' 2>/dev/null && { echo "$$p"; break; }; done)
TORCH ?= torch==2.13.0
PIP_ARGS ?=
PYTEST_ARGS ?=
GENHOI_SHARED ?= ../shared

VENV := .venv
RUN := $(VENV)/bin/python
PIP_INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
# Stamps lie in the environment, so that removing it removes them.
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
CPP := $(sort $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cuh' -o -name '*.cu' 2>/dev/null))
BUILD := setup.py $(sort $(wildcard build_tools/*.py))

define NO_PYTHON
No Python 3.11 or newer was found. On Debian 12, Ubuntu 24.04 and newer: \
sudo apt-get install python3 python3-venv. Or name one: make PYTHON=/path/to/python3
endef
define NO_VENV
This Python cannot create virtual environments. On Debian and Ubuntu: \
sudo apt-get install python3-venv (or python3.X-venv for the Python in use)
endef

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(RUN):
	@python='$(PYTHON)'; \
	if ! "$$python" -c '$(SUPPORTED)' 2>/dev/null; then echo "$(NO_PYTHON)" >&2; exit 1; fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then echo "$(NO_VENV)" >&2; exit 1; fi; \
	echo "Creating $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv $(VENV)

# torch comes first and on its own: the build takes its headers from the environment.
$(READY): $(BUILD) pyproject.toml $(CPP) | $(RUN)
	@echo "Installing $(TORCH) and this package into $(VENV)"
	@$(PIP_INSTALL) '$(TORCH)'
	@$(PIP_INSTALL) -e '.[all,test]'
	@for f in genhoi_kernels/_*_missing.txt; do if [ -f $$f ]; then cat $$f; fi; done
	@touch $@

$(READY_DEV): pyproject.toml | $(READY)
	@echo "Installing the tools for lint into $(VENV)"
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@

define BACKENDS
import genhoi_kernels
for b in genhoi_kernels.backends():
    print(f"backend {b.name}: " + ("usable" if b.usable else f"not usable: {b.reason}"))
endef
export BACKENDS

# Processes that share the tests out among them: one for each core, no more than 8; 0 for none.
WORKERS ?= auto --maxprocesses 8

.PHONY: test
test: $(READY) ## run every test this machine can run, then say which backends it has
	@status=0; $(RUN) -m pytest -q -n $(WORKERS) $(PYTEST_ARGS) || status=$$?; \
	$(RUN) -c "$$BACKENDS" || status=1; \
	exit $$status

# Apart from the environment, for with these diffusers imports more, whatever it is used for.
QUANTIZERS := $(VENV)/quantizers

$(QUANTIZERS)/.ready: | $(READY)
	@echo "Installing gguf and torchao into $(QUANTIZERS)"
	@$(PIP_INSTALL) --no-deps --target $(QUANTIZERS) gguf torchao
	@touch $@

.PHONY: test-quantized
test-quantized: $(QUANTIZERS)/.ready ## run the tests on transformers in few bits (GGUF, torchao)
	@PYTHONPATH=$(QUANTIZERS) $(RUN) -W ignore -c 'import gguf, torchao.quantization' # or all would skip
	@PYTHONPATH=$(QUANTIZERS) $(RUN) -m pytest -q $(PYTEST_ARGS) tests/models/test_wan_quantized.py tests/app/test_gguf_transformer.py

# A held-out clip, and the objects of two others: none of them was seen in training.
DEMO := results/demo
DEMO_CLIP := --video $(DEMO)/clip/video.mp4 --mask $(DEMO)/clip/mask.mp4

.PHONY: demo
demo: $(READY) ## edit a held-out clip with two objects, with the tiny trained base: results/demo/
	@$(RUN) -m genhoi.data.cup --out $(DEMO)/cup --force
	@$(VENV)/bin/genhoi inspect --video $(DEMO)/cup/video.mp4 --mask $(DEMO)/cup/mask.mp4 \
		--object $(DEMO)/cup/object.png --out $(DEMO) --force
	@$(RUN) -m genhoi.data.synthetic --index $(DEMO_CLIP_INDEX) --out $(DEMO)/clip --force
	@for i in $(DEMO_OBJECTS); do \
		$(RUN) -m genhoi.data.synthetic --index $$i --out $(DEMO)/object-$$i --force && \
		$(VENV)/bin/genhoi edit $(DEMO_CLIP) --object $(DEMO)/object-$$i/object.png \
			--out $(DEMO)/edit-$$i --force || exit 1; \
	done
	@$(RUN) -m genhoi.editing.contact_sheet --source $(DEMO)/clip/video.mp4 --mask $(DEMO)/clip/mask.mp4 \
		$(foreach i,$(DEMO_OBJECTS),--edited $(DEMO)/object-$(i)/object.png $(DEMO)/edit-$(i)/edited.mp4) \
		--out $(DEMO)/edits.png --force
	@echo "The figures and the edited clips are in $(DEMO)/; edits.png shows both edits"

DEMO_CLIP_INDEX := 0
DEMO_OBJECTS := 1 2

.PHONY: demo-real
demo-real: CLIP := $(GENHOI_SHARED)/data/hoi_clip
demo-real: ## the same for the real clip in GENHOI_SHARED (default: ../shared)
	@for file in source.mp4 mask.mp4 object.png; do \
		if [ ! -f "$(CLIP)/$$file" ]; then \
			echo "No $$file in $(CLIP). Name the folder that holds data/hoi_clip:" \
				"make demo-real GENHOI_SHARED=/path/to/it" >&2; exit 1; \
		fi; \
	done
	@$(MAKE) --no-print-directory $(READY)
	@$(VENV)/bin/genhoi inspect --video "$(CLIP)/source.mp4" --mask "$(CLIP)/mask.mp4" \
		--object "$(CLIP)/object.png" --out results/demo-real --force
	@$(VENV)/bin/genhoi edit --video "$(CLIP)/source.mp4" --mask "$(CLIP)/mask.mp4" \
		--object "$(CLIP)/object.png" --out results/demo-real --force
	@echo "The figures and the edited clip are in results/demo-real/"

# Ten minutes on two slow cores; BENCH_ARGS="--suite shapes" and the like choose other suites.
BENCH_ARGS ?= --minutes 9

.PHONY: bench
bench: $(READY) ## time the op beside its peers, under 10 minutes: results/bench/
	@$(VENV)/bin/genhoi bench --out results/bench $(BENCH_ARGS)

# With the Python that is there, and nothing installed: docs/gpu.md. GPU_REPORT_ARGS="--minutes 5"
GPU_REPORT_ARGS ?=

.PHONY: gpu-report
gpu-report: ## check, time and tune everything on this GPU, in 8 minutes: results/gpu-report/
	@'$(PYTHON)' -m benchmarks.gpu_report $(GPU_REPORT_ARGS)

# No GPU is needed: Triton's wheel holds the whole compiler. GPU_COMPILE_ARGS="--subset ci"
GPU_COMPILE_ARGS ?=
READY_TRITON := $(VENV)/.ready-triton

$(READY_TRITON): | $(READY)
	@echo "Installing Triton into $(VENV)"
	@$(PIP_INSTALL) 'triton>=3.6'
	@touch $@

.PHONY: gpu-compile
gpu-compile: $(READY_TRITON) ## compile every shipped Triton kernel for each GPU: results/gpu-compile/
	@$(RUN) -m benchmarks.static.compile_table $(GPU_COMPILE_ARGS)

NVCC := $(or $(CUDACXX),$(CUDA_HOME),$(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))

# The GPU tests without a GPU or its driver: their kernels' PTX runs in an emulator (tools/emugpu).
# It needs a CUDA build of torch, in an environment of its own: .venv-cuda, or, of another torch than
# the default, .venv-cuda-2.11.0.
DEFAULT_CUDA_TORCH := torch==2.14.1
CUDA_TORCH ?= $(DEFAULT_CUDA_TORCH)
EMULATED_ARCHS ?= 80 90
EMULATED_TESTS ?= tests/kernels/test_gpu.py tests/models/test_gpu_wan.py tests/kernels/test_cuda.py tests/kernels/test_cuda_backward.py \
	tests/kernels/test_cuda_norm_rope.py tests/kernels/test_flash.py tests/kernels/test_flash_versions.py
VENV_CUDA := .venv-cuda$(patsubst torch==%,-%,$(filter-out $(DEFAULT_CUDA_TORCH),$(CUDA_TORCH)))
RUN_CUDA := $(VENV_CUDA)/bin/python
READY_CUDA := $(VENV_CUDA)/.ready

# The package itself is not installed there: that would build its extension again. torch, and the
# Triton that belongs to it, stay what they are.
define REQUIREMENTS
import re, tomllib
from importlib.metadata import version
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
def requirements(extra):
    for requirement in project["optional-dependencies"][extra]:
        own = re.fullmatch(r"genhoi-kernels\[(.+)\]", requirement)
        if own is None:
            yield requirement
        else:
            for name in own[1].split(","):
                yield from requirements(name)
names = [*project["dependencies"], *requirements("all"), *requirements("test"), "ninja"]
pinned = (f"{name}=={version(name)}" for name in ("torch", "triton"))
print(*dict.fromkeys(names), *pinned, sep="\n")
endef
export REQUIREMENTS

$(READY_CUDA): pyproject.toml | $(RUN)
	@if [ ! -x $(RUN_CUDA) ]; then $(RUN) -m venv $(VENV_CUDA); fi
	@echo "Installing $(CUDA_TORCH) (a CUDA build) and the tests' packages into $(VENV_CUDA)"
	@$(RUN_CUDA) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) '$(CUDA_TORCH)'
	@$(RUN_CUDA) -c "$$REQUIREMENTS" | $(RUN_CUDA) -m pip install --quiet \
		--disable-pip-version-check $(PIP_ARGS) -r /dev/stdin
	@touch $@

.PHONY: environments
environments: $(READY_DEV) $(READY_CUDA) ## set up both environments, that of the emulated GPU too

# The emulator is not installed there either, so that what runs is the checkout's.
EMULATED := PYTHONPATH=tools/emugpu EMUGPU_BUILD_DIR=$(CURDIR)/build/emugpu \
	$(RUN_CUDA) -m pytest -p emugpu.pytest_plugin -q $(PYTEST_ARGS)

# The kernels' library, with those that only sm_90 has, and in PTX, which is what the emulator runs.
CUDA_LIBRARY := genhoi_kernels/libgenhoi_cuda.so

$(CUDA_LIBRARY): $(filter csrc/cuda/% %.h,$(CPP)) $(BUILD) | $(READY_DEV)
	@echo "Compiling the CUDA kernels"
	@GENHOI_BUILD_CPU=1 GENHOI_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 \
		$(RUN) setup.py --quiet build_ext --inplace >/dev/null

.PHONY: test-gpu-emulated
test-gpu-emulated: $(READY_CUDA) $(if $(NVCC),$(CUDA_LIBRARY)) ## run the GPU tests on emulated GPUs (no hardware)
	@status=0; \
	for arch in $(EMULATED_ARCHS); do \
		echo "The project's GPU tests on an emulated GPU, sm_$$arch (not hardware)"; \
		EMULATED_GPU=$$arch $(EMULATED) $(EMULATED_TESTS) || status=1; \
	done; \
	if [ $$status = 0 ]; then echo "Passed on emulated GPUs: $(EMULATED_ARCHS). No hardware was used."; fi; \
	exit $$status

.PHONY: gpu-report-emulated
gpu-report-emulated: $(READY_CUDA) $(if $(NVCC),$(CUDA_LIBRARY)) ## a dry run of gpu-report on an emulated GPU, at tiny sizes
	@EMULATED_GPU=$(lastword $(EMULATED_ARCHS)) $(EMULATED) tests/bench/test_gpu_report.py

.PHONY: test-emulator
test-emulator: $(READY_CUDA) ## run the emulated GPU's own tests
	@status=0; \
	echo "The PTX emulator's own tests"; \
	EMULATED_GPU=$(firstword $(EMULATED_ARCHS)) $(EMULATED) tools/emugpu/tests/ptx || status=1; \
	for arch in $(EMULATED_ARCHS); do \
		echo "Launches on an emulated GPU, sm_$$arch (not hardware)"; \
		EMULATED_GPU=$${arch}x2 $(EMULATED) tools/emugpu/tests/launch || status=1; \
	done; \
	exit $$status

# A wheel for others has all kernels that this machine has the compilers for, whatever its torch.
GENHOI_BUILD_CPU ?= 1
GENHOI_BUILD_CUDA ?= $(if $(NVCC),1,0)

.PHONY: wheel
wheel: $(READY) ## build a wheel, with the CUDA kernels where nvcc is: dist/
	@rm -f dist/*.whl
	@GENHOI_BUILD_CPU=$(GENHOI_BUILD_CPU) GENHOI_BUILD_CUDA=$(GENHOI_BUILD_CUDA) \
		$(RUN) -m pip wheel --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -w dist .
	@ls dist/*.whl

# One environment for each torch, kept: the wheel is what is installed anew.
CHECKED_TORCHES ?= $(TORCH) $(CUDA_TORCH)
CHECKED_PIP := -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

.PHONY: cuda-build-check
cuda-build-check: wheel ## install one wheel beside each torch of CHECKED_TORCHES, and run it there
	@for torch in $(CHECKED_TORCHES); do \
		folder=$(CURDIR)/build/wheel-check/$$torch; python=$$folder/bin/python; \
		if [ ! -f $$folder/.ready ]; then \
			echo "Installing $$torch into $$folder"; \
			$(RUN) -m venv $$folder; \
			$$python $(CHECKED_PIP) "$$torch" numpy pytest; \
			touch $$folder/.ready; \
		fi; \
		$$python $(CHECKED_PIP) --no-deps --force-reinstall dist/*.whl; \
		(cd $$folder; $$python -P $(CURDIR)/tests/kernels/native/check_wheel.py $(CURDIR)/csrc/cuda/launch.h); \
	done

.PHONY: lint
lint: $(READY_DEV) ## check formatting, style and types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@if [ -n '$(CPP)' ]; then $(VENV)/bin/clang-format --dry-run -Werror $(CPP); fi
	@$(VENV)/bin/mypy

.PHONY: format
format: $(READY_DEV) ## rewrite all sources in the project's format
	@$(VENV)/bin/ruff check --fix-only .
	@$(VENV)/bin/ruff format .
	@if [ -n '$(CPP)' ]; then $(VENV)/bin/clang-format -i $(CPP); fi

.PHONY: clean
clean: ## remove builds, caches and results; keep the environments
	@rm -rf build dist results *.egg-info .mypy_cache .ruff_cache .hypothesis .benchmarks
	@rm -rf tools/emugpu/build tools/emugpu/*.egg-info
	@rm -f genhoi_kernels/*.so genhoi_kernels/_*_missing.txt .venv*/.ready*
	@find . \( -name __pycache__ -o -name .pytest_cache \) -not -path './$(VENV)*/*' \
		-prune -exec rm -rf {} +
