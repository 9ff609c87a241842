"""The twin of denseclip_mask_rcnn_RN50_FPN_1x.yaml by Detectron2's LazyConfig."""

from detectron2.model_zoo import get_config

from denseclip_d2.meta_arch import DenseCLIPMaskRCNN

from ..common.coco_1x import dataloader, lr_multiplier, optimizer, train
from ..common.denseclip import backbone, init_checkpoint, pixel_text, pixels

backbone.top_block = "max_pool"
model = get_config("common/models/mask_rcnn_fpn.py").model
model.update(_target_=DenseCLIPMaskRCNN, backbone=backbone, **pixels, **pixel_text)

optimizer.lr = 2e-4
train.init_checkpoint = init_checkpoint
train.output_dir = "output/denseclip_mask_rcnn_RN50_FPN_1x"
