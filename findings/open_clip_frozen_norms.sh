#!/usr/bin/env bash
# open_clip's lock_image_tower(freeze_bn_stats=True) (--lock-image --lock-image-freeze-bn-stats), which is to keep an image
# tower as it is, changes its embeddings where timm's norms hold an activation (BatchNormAct2d): each of them becomes a
# norm without the activation. No error is raised, and training goes on with the other network. timm's own function of
# the same name keeps the activations.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check \
  open_clip_torch==3.3.0 timm==1.0.31 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 || exit 2
HF_HUB_OFFLINE=1 venv/bin/python -W ignore - <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import open_clip
import torch
from timm.layers import BatchNormAct2d, freeze_batch_norm_2d
from torch import nn

print(*(f"{name} {version(name)}" for name in ("open_clip_torch", "timm", "torch")))
as_stated, images = True, torch.randn(2, 3, 224, 224)
for tower in ("efficientnet_lite0", "efficientnetv2_rw_s", "regnety_002", "resnet50"):
    config = {
        "embed_dim": 64,
        "vision_cfg": {"timm_model_name": tower, "timm_pool": "", "timm_proj": "linear", "image_size": 224},
        "text_cfg": {"width": 64, "heads": 1, "layers": 1},
    }
    Path(f"{tower}.json").write_text(json.dumps(config))
    open_clip.add_model_config(Path(f"{tower}.json"))
    changes = {}
    for who in ("open_clip", "timm"):
        torch.manual_seed(0)
        model = open_clip.create_model(tower, pretrained_image=False).eval()
        norms = [x for x in model.visual.modules() if isinstance(x, BatchNormAct2d)]
        acting = sum(not isinstance(x.act, nn.Identity) for x in norms)
        with torch.no_grad():
            before = model.encode_image(images)
            if who == "open_clip":
                model.lock_image_tower(freeze_bn_stats=True)
            else:
                freeze_batch_norm_2d(model.visual)
            changes[who] = ((model.encode_image(images) - before).norm() / before.norm()).item()
    print(f"{tower}, {acting} norms with an activation, embeddings change by", end=" ")
    print(*(f"{change:.2g} ({who})" for who, change in changes.items()))
    as_stated &= changes["timm"] < 1e-4 and (changes["open_clip"] > 0.1) == (acting > 0)
print("as stated" if as_stated else "not as stated")
sys.exit(not as_stated)
PYTHON
