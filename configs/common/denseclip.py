"""The guidance of RN50 as the released detectors have it, by Detectron2's LazyConfig."""

from detectron2.config import LazyCall as L
from detectron2.data import MetadataCatalog

from denseclip_d2.clip_models import get_clip_architecture
from denseclip_d2.guidance import LanguageGuidedFPN
from denseclip_d2.language import CLIPTextEncoder, PromptedTextEncoder
from denseclip_d2.language.sentences import SentenceReader
from denseclip_d2.visual import CLIPResNet

architecture = "RN50-quickgelu"
init_checkpoint = f"openclip://{architecture}/openai"
pixels = {
    "pixel_mean": [122.7709383, 116.7460125, 104.09373615],
    "pixel_std": [68.5005327, 66.6321579, 70.32316305],
    "input_format": "RGB",
}
pixel_text = {"pixel_text_weight": 1.0, "pixel_text_target": "box", "pixel_text_kind": "binary"}

visual = L(CLIPResNet)(**CLIPResNet.arguments_of(get_clip_architecture(architecture)))
visual.update(resolution=1344, position="crop", norm="SyncBN")

backbone = L(LanguageGuidedFPN)(
    visual=visual,
    language=L(PromptedTextEncoder)(
        class_names=list(MetadataCatalog.get("coco_2017_train").thing_classes),
        text_encoder=L(CLIPTextEncoder.from_architecture)(
            architecture=L(get_clip_architecture)(name=architecture)
        ),
        sentences=L(SentenceReader)(n_ctx=8, length=5),
    ),
    in_features=["res2", "res3", "res4", "res5"],
    out_channels=256,
)
