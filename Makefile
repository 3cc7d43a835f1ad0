# make demo | test | gpu | bench | simde | nvcc | clean | distclean.  Everything happens in .venv and build; nothing is
# installed elsewhere. `make gpu` alone uses the Python that is there (PYTHON), and no network.
PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
DEMO_ARGS ?=
GPU_ARGS ?=
CUDA ?= ON

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
STAMP := $(VENV)/stamps
SIMDE := build/simde
SOURCES := $(shell find csrc python -type f \( -name '*.py' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \)) \
	CMakeLists.txt $(wildcard cmake/*.cmake)
PROJECT := setup.py pyproject.toml constraints.txt

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.NOTPARALLEL:
.PHONY: help demo test gpu bench simde nvcc clean distclean

help:
	@echo "make demo       quantise SmolLM2-135M and print the table (under 15 minutes on 2 cores)"
	@echo "make test       the tests; PYTEST_ARGS='-k hadamard' for some of them; CUDA=OFF without the CUDA kernels' audit"
	@echo "make gpu        on a machine with a GPU: build, prove and bench the CUDA kernels; GPU_ARGS='--help'"
	@echo "make bench      the kernel benchmarks against the installed peers; BENCH_ARGS='--help'"
	@echo "make clean      remove build; make distclean also removes .venv"

demo: $(STAMP)/demo $(STAMP)/lowbit
	$(PY) -m lowbit.cli.demo --out build/demo $(DEMO_ARGS)

# The tests run on a library that also holds the AVX-512 kernels over SIMDe, where those headers can be had, and the CUDA
# kernels, whose machine code tests/audit reads.
test: $(STAMP)/test $(STAMP)/lowbit simde $(if $(filter ON,$(CUDA)),nvcc)
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -S . -B build/emu -G Ninja \
	  -DTORCH_DIR="$$($(PY) -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent)')" \
	  -DLOWBIT_CUDA=$(CUDA) \
	  -DLOWBIT_SIMDE_DIR="$(if $(wildcard $(SIMDE)/simde/x86/avx512.h),$(abspath $(SIMDE)))" > build/emu.log
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake --build build/emu --target lowbit
	PATH="$(abspath $(VENV))/bin:$$PATH" LOWBIT_LIBRARY="$(abspath build/emu/liblowbit.so)" $(PY) -m pytest $(PYTEST_ARGS)

gpu:
	$(PYTHON) -m tests.gpu $(GPU_ARGS)

bench: $(STAMP)/bench $(STAMP)/lowbit
	$(PY) -m bench $(BENCH_ARGS)

# The environment. torch comes first and alone: the build finds its headers there, and the constraint keeps it the CPU build.
$(STAMP)/venv:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and "lowbit: expected Python >= 3.10, got " + sys.version)'
	@echo "== environment $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMP) && touch $@

$(STAMP)/torch: constraints.txt | $(STAMP)/venv
	@echo "== torch"
	$(PIP) install -c constraints.txt torch
	@touch $@

# One rule per extra; installing one builds and installs lowbit too, so the stamp of lowbit is renewed with it.
$(STAMP)/demo $(STAMP)/test $(STAMP)/bench: $(PROJECT) | $(STAMP)/torch
	@echo "== lowbit[$(@F)]: build and install"
	@rm -rf build/lib build/lib.* build/bdist.*
	$(PIP) install -c constraints.txt ".[$(if $(filter bench,$(@F)),hf$(comma))$(@F)]"
	@touch $(STAMP)/lowbit $@

# The sources changed since: build and install again, dependencies as they are.
$(STAMP)/lowbit: $(SOURCES) | $(STAMP)/torch
	@echo "== lowbit: build and install"
	@rm -rf build/lib build/lib.* build/bdist.*
	$(PIP) install --no-deps .
	@touch $@

comma := ,

# The CUDA compiler: the machine's, else the one that setup.py names, from PyPI into .venv (seconds, 300 MB).
nvcc: $(STAMP)/nvcc

$(STAMP)/nvcc: setup.py | $(STAMP)/torch
	@if ! PATH="$(CUDA_HOME)/bin:$$PATH:/usr/local/cuda/bin" command -v nvcc >/dev/null; then \
	   echo "== nvcc"; $(PIP) install "$$(sed -n 's/^NVCC = "\(.*\)"/\1/p' setup.py)"; fi
	@touch $@

# Headers of SIMD Everywhere: with them the tests run the AVX-512 kernels on a CPU that has none. An installed package
# serves; else Debian's is unpacked here without root; without either these tests are skipped, by name.
simde: $(SIMDE)/.done

$(SIMDE)/.done:
	@mkdir -p $(SIMDE)
	@if [ -e /usr/include/simde/x86/avx512.h ]; then \
	   ln -sfn /usr/include/simde $(SIMDE)/simde; \
	 elif command -v apt-get >/dev/null && command -v dpkg >/dev/null; then \
	   (cd $(SIMDE) && { apt-get -q download libsimde-dev || { apt-get -qq update && apt-get -q download libsimde-dev; }; } \
	    && dpkg -x libsimde-dev_*.deb . && ln -sfn usr/include/simde simde) || true; \
	 fi
	@if [ -e $(SIMDE)/simde/x86/avx512.h ]; then touch $@; \
	 else echo "note: no libsimde-dev: the tests of the emulated AVX-512 kernels will be skipped"; fi

clean:
	rm -rf build dist *.egg-info python/*.egg-info .pytest_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf $(VENV)
