# `make demo` and `make test` do all their set-up into .venv, and do not redo what is done.
# `make demo-masks` is the demo with Mask R-CNN, `make demo-segmentation` with Semantic FPN.
#   PYTHON=python3.12     another interpreter
#   DETECTRON2=source     Detectron2 built from GitHub (about 8 minutes) instead of the pinned wheel
PYTHON ?= $(shell command -v python3.11 || command -v python3)
DETECTRON2 ?= $(if $(wildcard .venv/installed-source),source,wheel)
DETECTRON2_SOURCE ?= git+https://github.com/facebookresearch/detectron2.git

BIN := .venv/bin
INSTALLED := .venv/installed-$(DETECTRON2)
# Detectron2's dependencies warn about one another.
export PYTHONWARNINGS ?= ignore

.PHONY: install demo demo-masks demo-segmentation test lint format

install: $(INSTALLED)

$(INSTALLED): requirements.txt requirements-detectron2.txt setup.py
	@echo "== Installing into .venv (about 6 GB, most of it torch; some minutes) =="
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
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
DEMO = $(BIN)/python tools/demo.py --dataset $(DATASET) --count 12 --threshold 0.4

demo demo-masks demo-segmentation: $(INSTALLED)
	@echo "== Dataset: shapes, generated =="
	$(BIN)/python datasets/prepare_shapes.py
	@echo "== Pictures by the zoo's model =="
	$(DEMO) --zoo $(CONFIG) --output $(OUTPUT)/zoo
	@echo "== Training and evaluation: $(CONFIG) =="
	$(BIN)/python tools/train_net.py --config-file configs/$(CONFIG) --resume OUTPUT_DIR $(OUTPUT)
	@echo "== Pictures by the model just trained =="
	$(DEMO) --config-file configs/$(CONFIG) --output $(OUTPUT)/pictures MODEL.WEIGHTS $(OUTPUT)/model_final.pth

test: $(INSTALLED) lint
	$(BIN)/python -m pytest --durations=10

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
