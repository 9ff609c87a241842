from .fcos import ConfigurableFCOS
from .pixel_text import PixelTextSupervision, language_guided
from .retinanet import RetinaNetGlobalNorm
from .score_map_head import ScoreMapHead
from .sem_seg_head import SemSegFPNHeadWithDropout
from .semantic_fpn import SlidingWindowSegmentor
from .systems import (
    DenseCLIPFCOS,
    DenseCLIPMaskRCNN,
    DenseCLIPPanopticFPN,
    DenseCLIPRetinaNet,
    DenseCLIPSemanticFPN,
)

__all__ = [
    "ConfigurableFCOS",
    "RetinaNetGlobalNorm",
    "ScoreMapHead",
    "SemSegFPNHeadWithDropout",
    "SlidingWindowSegmentor",
    "DenseCLIPFCOS",
    "DenseCLIPMaskRCNN",
    "DenseCLIPPanopticFPN",
    "DenseCLIPRetinaNet",
    "DenseCLIPSemanticFPN",
    "PixelTextSupervision",
    "language_guided",
]
