from detectron2.modeling.meta_arch import SemanticSegmentor
from detectron2.structures import ImageList
from torch import Tensor


def seen_by_backbone(model: SemanticSegmentor, batched_inputs: list[dict]) -> Tensor:
    """Return images normalized and padded, (B, 3, H, W), as ``forward`` of Detectron2's segmentor does."""
    images = [(x["image"].to(model.device) - model.pixel_mean) / model.pixel_std for x in batched_inputs]
    backbone = model.backbone
    return ImageList.from_tensors(
        images, backbone.size_divisibility, padding_constraints=backbone.padding_constraints
    ).tensor
