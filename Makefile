# Each target sets up .venv by itself. PYTHON chooses the interpreter (3.10 to 3.13).
# On Linux, TORCH_INDEX=https://download.pytorch.org/whl/cpu takes torch's small CPU build.
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
READY := .venv/ready
INDEX := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
NATIVE_SOURCES := $(wildcard src/mgqe/ops/native/*.cpp src/mgqe/ops/native/*.h src/mgqe_reader/*/*.cpp src/mgqe_reader/*/*.h)

BENCHMARKS := append assign bag bounds budgets convert_forward decode epoch export fold lookup_model planning row_storage serve \
	single topk topk_methods train_step zipf
MINUTES ?= 5
SEED ?= 0
FILES ?=
JOBS ?= 1
COUNT ?=
WHAT ?=
# As many processes of tests as there are cores.
PARALLEL := -n auto --dist worksteal

.PHONY: demo test test-all test-lowest test-newest test-torchrec test-third-party test-neon lint docs sanitize fuzz kill bench study clean setup

demo: setup  ## train full tables, small ones and those of a budget on generated data; table, picture, look-up
	$(BIN)/mgqe compare --out runs/demo --seeds 1 --jobs 2 --embedding full --embedding full:d=8 --budget 10%
	$(BIN)/python examples/look_up.py runs/demo

test: lint  ## lint, types and the tests that take seconds
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-all: lint  ## the slow tests as well
	$(BIN)/python -m pytest

test-lowest: .venv-lowest/ready  ## the same tests on the lowest releases that pyproject.toml admits
	.venv-lowest/bin/python -m pytest $(PARALLEL) -m "not slow"

test-newest: .venv-newest/ready  ## the same tests on the newest releases
	.venv-newest/bin/python -m pytest $(PARALLEL) -m "not slow"

test-torchrec: .venv-torchrec/ready  ## all tests with torchrec, accelerate, lightning, MLflow and W&B
	.venv-torchrec/bin/python -m pytest tests/torchrec tests/nn/test_loops.py tests/integrations \
		tests/convert/test_short_examples.py tests/test_readme.py::test_the_page_on_hubs_runs

test-third-party: .venv-third-party/ready .venv-fuxictr/ready  ## the tests with RecBole, DeepCTR-Torch, transformers, FuxiCTR, vector stores
	.venv-third-party/bin/python -m pytest tests/convert/test_recbole.py tests/convert/test_deepctr.py \
		tests/convert/test_short_examples.py tests/convert/test_transformers.py tests/hub
	.venv-fuxictr/bin/python -m pytest tests/convert/test_short_examples.py tests/test_vector_stores.py

lint: setup
	$(BIN)/ruff check src tests benchmarks reliability examples docs/site docs/gallery setup.py reader
	$(BIN)/ruff format --check src tests benchmarks reliability examples docs/site docs/gallery setup.py reader
	$(BIN)/mypy

docs: setup  ## the documentation as a site in build/site; its notebooks are run; a broken link is an error
	$(BIN)/pip install -q -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -d build/site  # with -q a broken link would pass

# The library goes to build/sanitized and is loaded from there (MGQE_LIBRARY): the installed one stays as it is.
# LD_PRELOAD, because Python itself is not built with the sanitizer; no leak check, because Python never frees all of
# its memory.
sanitize: setup  ## the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer (gcc, Linux)
	MGQE_CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -g -O1" \
		$(BIN)/python setup.py build_ext --build-lib build/sanitized
	MGQE_LIBRARY=$(CURDIR)/build/sanitized/mgqe/ops/libmgqe_native.so ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest -q $(PARALLEL) -m "not slow" tests/ops

test-neon: setup  ## the searches, look-ups and bags of a build for arm64, emulated (g++-aarch64-linux-gnu, qemu-user)
	$(BIN)/python -m pytest -q -n 0 -rs tests/ops/test_native_checks.py -k neon

fuzz: setup  ## damage small artefacts at random for MINUTES (or FILES=N of them), from SEED, in JOBS processes
	$(BIN)/python -m reliability.fuzz --minutes $(MINUTES) --seed $(SEED) --jobs $(JOBS) \
		$(if $(FILES),--files $(FILES))

kill: setup  ## kill every writer at random moments, COUNT times each, from SEED; WHAT="save train" for some
	$(BIN)/python -m reliability.kill $(WHAT) --seed $(SEED) $(if $(COUNT),--count $(COUNT))

bench: setup  ## the speed benchmarks that need no data set, to benchmarks/speed/results
	$(BIN)/pip install -q -c constraints.txt -e ".[bench]"
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.speed.$$name || exit 1; done

setup: $(READY)

# torch comes first and pinned: left to a resolver it may bring several gigabytes of CUDA packages.
$(READY): pyproject.toml setup.py constraints.txt $(NATIVE_SOURCES)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(INDEX) -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

.venv-lowest/ready: pyproject.toml setup.py constraints-lowest.txt $(NATIVE_SOURCES)
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install -q $(INDEX) -c constraints-lowest.txt torch
	.venv-lowest/bin/pip install -q -c constraints-lowest.txt -e ".[dev]"
	touch $@

.venv-newest/ready: pyproject.toml setup.py $(NATIVE_SOURCES)
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install -q $(INDEX) torch
	.venv-newest/bin/pip install -q -e ".[dev]"
	touch $@

# --no-deps, because torchrec requires the CUDA build of fbgemm; its other requirements are in the requirements file.
.venv-torchrec/ready: pyproject.toml setup.py constraints.txt requirements-torchrec.txt $(NATIVE_SOURCES)
	$(PYTHON) -m venv .venv-torchrec
	.venv-torchrec/bin/pip install -q $(INDEX) -c constraints.txt torch
	.venv-torchrec/bin/pip install -q --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0
	.venv-torchrec/bin/pip install -q -c constraints.txt -r requirements-torchrec.txt -e ".[dev,loops]"
	touch $@

.venv-third-party/ready: pyproject.toml setup.py constraints.txt requirements-third-party.txt $(NATIVE_SOURCES)
	$(PYTHON) -m venv .venv-third-party
	.venv-third-party/bin/pip install -q $(INDEX) -c constraints.txt torch
	.venv-third-party/bin/pip install -q -c constraints.txt -r requirements-third-party.txt -e ".[dev]"
	touch $@

# FuxiCTR and RecBole want different releases of ray, so that each has an environment of its own. The vector stores are
# in FuxiCTR's, since RecBole wants a NumPy that pyarrow no longer takes.
.venv-fuxictr/ready: pyproject.toml setup.py constraints.txt $(NATIVE_SOURCES)
	$(PYTHON) -m venv .venv-fuxictr
	.venv-fuxictr/bin/pip install -q $(INDEX) -c constraints.txt torch
	.venv-fuxictr/bin/pip install -q -c constraints.txt fuxictr==2.3.10 usearch lancedb duckdb -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .venv-* build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
