# `make help` says what there is.
#   PYTHON=python3.12     another interpreter, 3.11 to 3.13
#   DETECTRON2=source     Detectron2 built from GitHub (about 8 minutes) instead of the pinned wheel
PYTHON ?= $(or $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c "" 2>/dev/null && echo $$p && break; done),python3)
DETECTRON2 ?= $(if $(wildcard .venv/installed-source),source,wheel)
DETECTRON2_SOURCE ?= git+https://github.com/facebookresearch/detectron2.git

BIN := .venv/bin
INSTALLED := .venv/installed-$(DETECTRON2)
# Go in without dependencies: the one asks for an OpenCV with windows, which would overwrite the one without, the other for
# an older Pillow. What they import is in requirements.txt.
LVIS := lvis==0.5.3
GRADIO := gradio==6.31.0
# Extras that are not in .venv: examples/programs.py runs each in an environment of its own. LiteRT's converter
# asks for older typing_extensions than pydantic and ExecuTorch do.
EXECUTORCH := executorch==1.5.1
LITERT := ai-edge-litert==2.3.0
LITERT_TORCH := litert-torch==0.10.0
# Detectron2's dependencies warn about one another.
export PYTHONWARNINGS ?= ignore

.DEFAULT_GOAL := help
.PHONY: help python install demo demo-masks demo-segmentation demo-photos web examples runtimes docs test coverage lint format

help:
	@echo "Each target does all the set-up it needs into .venv, and does not redo what is done."
	@echo
	@echo "  make demo               generate a dataset, train RetinaNet on it, evaluate, draw, report"
	@echo "  make demo-masks         the same with Mask R-CNN"
	@echo "  make demo-segmentation  the same with Semantic FPN"
	@echo "  make demo-photos        label a photograph by names, without training"
	@echo "  make web                a page at http://127.0.0.1:7860: drop an image, type names, see what a model sees"
	@echo "  make examples           export the zoo's models, and run the examples on them without torch"
	@echo "  make runtimes           run the zoo's models in fourteen runtimes, and print what works"
	@echo "  make docs               the pages and the API as a site in output/site"
	@echo "  make test               lint, and run the tests"
	@echo "  make coverage           run the tests, and print the part of each file that they run"
	@echo "  make lint               look for mistakes: ruff, types, spelling, links of the pages"
	@echo "  make format             format the code"
	@echo "  make install            the set-up alone"
	@echo
	@echo "PYTHON=python3.12 takes another interpreter, DETECTRON2=source builds Detectron2 from GitHub."

# The interpreter of .venv where there is one, else the one that would make it.
python:
	@python=$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)); \
	version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); \
	case "$$version" in 3.11|3.12|3.13) ;; *) \
	  echo "Python 3.11, 3.12 or 3.13 is needed; $$python is $${version:-not there}." \
	    "Say which one to take by make PYTHON=..., and remove .venv if it is of another."; exit 1;; esac

install: $(INSTALLED)

$(INSTALLED): requirements.txt requirements-detectron2.txt pyproject.toml | python
	@echo "== Installing into .venv (about 6 GB, most of it torch; some minutes) =="
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(LVIS) $(GRADIO)
	@$(BIN)/python -m pip uninstall --quiet --yes detectron2 sal-detectron2 2>/dev/null
ifeq ($(DETECTRON2),source)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation '$(DETECTRON2_SOURCE)'
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --upgrade \
	  --only-binary=:all: --python-version 3.10 -r requirements-detectron2.txt \
	  --target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
endif
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f .venv/installed-* && touch $@

demo: CONFIG := Shapes/denseclip_retinanet_tiny.yaml
demo: OUTPUT := output/shapes_retinanet
demo-masks: CONFIG := Shapes/denseclip_mask_rcnn_tiny.yaml
demo-masks: OUTPUT := output/shapes_mask_rcnn
demo-segmentation: CONFIG := Shapes/denseclip_semantic_fpn_tiny.yaml
demo-segmentation: OUTPUT := output/shapes_semantic_fpn
demo-segmentation: DATASET := shapes_sem_seg_val
DATASET = shapes_val
DEMO = $(BIN)/python tools/demo.py --dataset $(DATASET) --count 12 --threshold 0.4 --overwrite

demo demo-masks demo-segmentation: $(INSTALLED)
	@echo "== Dataset: shapes, generated =="
	$(BIN)/python datasets/prepare_shapes.py
	@echo "== Images by the zoo's model =="
	$(DEMO) --zoo $(CONFIG) --output $(OUTPUT)/zoo
	@echo "== Training and evaluation: $(CONFIG) =="
	$(BIN)/python tools/train_net.py --config-file configs/$(CONFIG) --resume OUTPUT_DIR $(OUTPUT)
	@echo "== Images by the model just trained =="
	$(DEMO) --config-file configs/$(CONFIG) --output $(OUTPUT)/images MODEL.WEIGHTS $(OUTPUT)/model_final.pth
	@echo "== Look at =="
	@for file in zoo/overview.png images/overview.png report.html; do \
	  if test -e $(OUTPUT)/$$file; then echo "$(CURDIR)/$(OUTPUT)/$$file"; fi; done

PHOTOS := output/photos
demo-photos: NAMES := "space shuttle" helmet flag person
demo-photos: $(INSTALLED)
	$(BIN)/python tools/demo.py --zoo WithoutTraining/photographs.yaml --output $(PHOTOS) --overwrite \
	  --input denseclip_d2/web_demo/photographs/astronaut.jpg --names $(NAMES) --score-map $(NAMES)
	@echo "== Look at =="
	@echo "$(CURDIR)/$(PHOTOS)/astronaut.png"

web: $(INSTALLED)
	$(BIN)/python tools/web_demo.py

examples: $(INSTALLED)
	examples/check.sh $(BIN)/python output/examples

runtimes: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check onnxslim==0.1.98
	$(BIN)/python examples/runtimes.py output/runtimes
	$(BIN)/python examples/programs.py output/runtimes

docs: .venv/docs-requirements.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

.venv/docs-requirements.txt: docs/site/requirements.txt $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@cp $< $@

# A process for each core, up to four, each with one thread and one file of tests at a time.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test: $(INSTALLED) lint
	$(PYTEST) --durations=10

# Apart from `test`, since measuring takes a sixth more of the processors' time.
coverage: $(INSTALLED)
	$(PYTEST) --cov --cov-report=term:skip-covered

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m pytest --quiet --noconftest tests/test_links.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
