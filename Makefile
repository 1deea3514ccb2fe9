# make demo   sets up and runs the main job on videos that it makes itself
# make test   sets up and runs the tests
# make lint   style, format and types;  make docs   writes docs/cli.md anew
# make check-clips   decodes every real clip in DATA and compares the frame counts
# make gpu-check     GPU tests and benchmarks, one JSON report
# make opencv-cuda   builds OpenCV with its CUDA flow methods, for cards and toolkit that are here

PYTHON ?= python3
VENV ?= .venv
DATA ?= ../shared/data
BIN := $(VENV)/bin
READY := $(VENV)/ready

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	sh choose_opencv.sh $(BIN)
	touch $@

.PHONY: setup demo test lint docs check-clips gpu-check opencv-cuda clean
setup: $(READY)

demo: $(READY)
	$(BIN)/python -m flowkit.synthetic demo/videos
	$(BIN)/flowkit extract demo/videos --out demo/flow
	$(BIN)/flowkit info demo/flow
	$(BIN)/flowkit verify demo/flow
	$(BIN)/flowkit view "$$(find demo/flow -name record.json | sort | head -n 1 | xargs dirname)" \
		--out demo/look.png
	@echo
	@echo "demo/videos/ holds the videos, demo/flow/ a flow record of each: look at demo/look.png,"
	@echo "then at your own: $(BIN)/flowkit extract YOUR_VIDEOS --out flow"

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python -m flowkit_cli.reference docs/cli.md

check-clips: $(READY)
	$(BIN)/python benchmarks/check_clips.py $(DATA)

gpu-check: $(READY)
	$(BIN)/python benchmarks/gpu_check.py $(DATA)

opencv-cuda: $(READY)
	sh build_opencv_cuda.sh $(BIN)

clean:
	rm -rf demo build *.egg-info .pytest_cache .ruff_cache .mypy_cache
