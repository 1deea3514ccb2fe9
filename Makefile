# make demo   sets up and runs the whole on videos that it makes itself: flow, both streams, report
# make check  sets up, then lint, site, test and wheel: what has to pass before a change is done
# make test   the tests but the slow ones;  make test-all   all of them
# make lint   style, format and types
# make wheel  builds the source archive and the wheel from it, unpacks the wheel elsewhere and uses it
# make site   the docs as a site in build/site, every link in them checked
# make docs   writes docs/cli.md, docs/api.md and the man pages again
# make pictures   the pictures of the docs, of what the demo made; needs Chromium
# make check-clips   decodes every real clip in DATA and compares the frame counts
# make reproduce     the rows of 2014 on DATA/jhmdb10 or CLIPS, its split in LISTS; PROFILE=gpu: at full size;
#                    TABLES=2016: joined towers, after them
# make faults      kills, flipped bits, races, full disks, hostile files: docs/reliability.md, 5 minutes
# make gpu-check     GPU tests and benchmarks, one JSON report
# make opencv-cuda   builds OpenCV with its CUDA flow methods, for GPUs and toolkit that are here

PYTHON ?= python3
VENV ?= .venv
DATA ?= ../shared/data
CHECK_SECONDS ?= 900
CLIPS ?= $(DATA)/jhmdb10
LISTS ?= $(CLIPS)
PROFILE ?= cpu
PICTURE := $(if $(filter $(DATA)/jhmdb10,$(CLIPS)),--picture docs/reproduced.svg)
ON_GPU := $(if $(filter gpu,$(PROFILE)),--gpu)
FLOW_ONLY := $(if $(filter cpu,$(PROFILE)),--resize 128) --no-rgb --pack --format lz4
CHROMIUM ?= chromium
BIN := $(VENV)/bin
READY := $(VENV)/ready

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,lint,onnx]'
	sh choose_opencv.sh $(BIN)
	touch $@

.PHONY: setup check demo test test-all lint wheel site docs pictures check-clips reproduce faults gpu-check opencv-cuda clean
setup: $(READY)

demo: $(READY)
	$(BIN)/python -m flowkit.synthetic demo/videos --videos-per-class 12
	$(BIN)/flowkit extract demo/videos --out demo/flow --preset fast --resize 120
	$(BIN)/flowkit verify demo/flow
	$(BIN)/flowkit view demo/flow/down_checks/v_down_checks_g02_c01 --out demo/look.png
	$(BIN)/flowkit train spatial --records demo/flow --runs demo/runs --resume \
		--recipe short --short-side 120 --crop 96 --steps 60
	$(BIN)/flowkit train temporal --records demo/flow --runs demo/runs --resume --L 5 \
		--recipe short --no-mean-subtract --short-side 64 --crop 56 --steps 150 --lr 0.03
	$(BIN)/flowkit eval --records demo/flow --runs demo/runs --moments 5 --views center
	$(BIN)/flowkit fuse --runs demo/runs --method average
	$(BIN)/flowkit predict demo/videos/down_checks/v_down_checks_g02_c01.mp4 \
		--spatial demo/runs/spatial --temporal demo/runs/temporal \
		--fusion demo/runs/fused/fusion.npz --moments 5 --views center --out demo/predicted.mp4
	$(BIN)/flowkit report --records demo/flow --runs demo/runs
	@echo
	@echo "One frame shows the texture, never the motion: the spatial stream can be right in one of five"
	@echo "classes. Flow shows the motion, hardly the texture: the temporal stream in one of two. Fused,"
	@echo "they tell the classes apart. The page with pictures: demo/runs/report.html; a record to look"
	@echo "at: demo/look.png. Then your own: $(BIN)/flowkit extract YOUR_VIDEOS --out flow"

check: lint site test wheel

# Compiled tests and modules are kept: their many interpreters would compile all of it again.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal

test: $(READY)
	$(PYTEST) -m "not slow"

test-all: $(READY)
	$(PYTEST)

wheel: $(READY)
	rm -rf build/wheel && mkdir -p build
	$(BIN)/python -m build --outdir build/wheel . >build/wheel.log || { cat build/wheel.log; exit 1; }
	$(BIN)/python tests/use_wheel.py build/wheel/*.whl
	$(BIN)/check-wheel-contents build/wheel/*.whl
	$(BIN)/twine check --strict build/wheel/*

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

site: $(READY)
	$(BIN)/mkdocs build --quiet
	cp build/site/guide.html build/site/index.html

docs: $(READY)
	$(BIN)/python -m flowkit_cli.reference docs/cli.md
	$(BIN)/python -m flowkit_cli.library_reference docs/api.md
	$(BIN)/python -m flowkit_cli.man_pages man

pictures: demo
	$(CHROMIUM) --headless --hide-scrollbars --window-size=1160,1205 \
		--screenshot=$(CURDIR)/docs/report.png $(CURDIR)/demo/runs/report.html

check-clips: $(READY)
	$(BIN)/python benchmarks/check_clips.py $(DATA)

reproduce: $(READY)
	$(BIN)/flowkit extract $(CLIPS) --out reproduce/frames --method dis --preset ultrafast --pack
	$(BIN)/flowkit extract $(CLIPS) --out reproduce/tvl1-fast --preset fast --backward $(ON_GPU) $(subst --no-rgb,--rgb,$(FLOW_ONLY))
	$(BIN)/flowkit extract $(CLIPS) --out reproduce/tvl1 $(ON_GPU) $(FLOW_ONLY)
	$(BIN)/flowkit extract $(CLIPS) --out reproduce/farneback --method farneback $(ON_GPU) $(FLOW_ONLY)
	$(BIN)/flowkit extract $(CLIPS) --out reproduce/dis --method dis $(FLOW_ONLY)
	$(if $(RAFT),$(BIN)/flowkit extract $(CLIPS) --out reproduce/raft --method raft --raft-weights $(RAFT) $(FLOW_ONLY))
	$(BIN)/python benchmarks/reproduce.py $(LISTS) --frames reproduce/frames \
		$(foreach flow,tvl1-fast tvl1 farneback dis $(if $(RAFT),raft),--flow $(flow)=reproduce/$(flow)) \
		--profile $(PROFILE) --runs reproduce/runs $(PICTURE) $(if $(TABLES),--tables $(TABLES))

faults: $(READY)
	$(BIN)/python benchmarks/faults.py --write docs/reliability.md

# Needs no environment of its own: it takes the one that is here, and names what that lacks.
gpu-check:
	PYTHONPATH=$(CURDIR) $(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON)) \
		benchmarks/gpu_check.py $(wildcard $(DATA)) --seconds $(CHECK_SECONDS) $(if $(OUT),--out $(OUT))

opencv-cuda: $(READY)
	sh build_opencv_cuda.sh $(BIN)

clean:
	rm -rf demo build *.egg-info .pytest_cache .ruff_cache .mypy_cache
