"""The recipe of the released detectors on COCO: 12 epochs, batches of 16, AdamW."""

import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from denseclip_d2.engine.optimizer import parameter_groups

dataloader = get_config("common/data/coco.py").dataloader
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.augmentations[0] = L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)

train = get_config("common/train.py").train
train.max_iter = 87960  # 7330 iterations an epoch
train.amp.precision = "float16"
train.clip_gradients = {"clip_type": "full_model", "clip_value": 0.1}

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[58640, 80630, 87960]),
    warmup_length=500 / 87960,
    warmup_method="linear",
    warmup_factor=0.001,
)

optimizer = L(torch.optim.AdamW)(
    params=L(parameter_groups)(
        base_lr="${..lr}",
        weight_decay="${..weight_decay}",
        weight_decay_norm="${..weight_decay}",
        no_weight_decay=["*.context_decoder.decoder.*.norm?.*"],
    ),
    lr=1e-4,
    weight_decay=1e-4,
)
