"""The twin of denseclip_retinanet_RN50_FPN_1x.yaml by Detectron2's LazyConfig."""

from detectron2.model_zoo import get_config

from denseclip_d2.meta_arch import DenseCLIPRetinaNet

from ..common.coco_1x import dataloader, lr_multiplier, optimizer, train
from ..common.denseclip import backbone, init_checkpoint, pixel_text, pixels

backbone.update(in_features=["res3", "res4", "res5"], top_block="p6_p7_without_relu")
model = get_config("common/models/retinanet.py").model
model.update(_target_=DenseCLIPRetinaNet, backbone=backbone, **pixels, **pixel_text)

dataloader.train.mapper.use_instance_mask = False
train.init_checkpoint = init_checkpoint
train.output_dir = "output/denseclip_retinanet_RN50_FPN_1x"
