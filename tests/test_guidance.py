import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone import SimpleFeaturePyramid
from detectron2.structures import BitMasks, Boxes, PolygonMasks
from released import released_language
from torch.testing import assert_close

from denseclip_d2.guidance import (
    LanguageGuidedFeatures,
    LanguageGuidedFPN,
    LanguageGuidedNeck,
    pixel_text_loss,
    pixel_text_scores,
    pixel_text_softmax_loss,
    region_targets,
)
from denseclip_d2.guidance.features import denoised_scores
from denseclip_d2.guidance.fpn import LastLevelP6P7WithoutReLU
from denseclip_d2.language import PromptedTextEncoder
from denseclip_d2.language.sentences import SentenceReader
from denseclip_d2.language.text_encoder import CLIPTextEncoder
from denseclip_d2.visual import CLIPResNet

NAMES = ["person", "hot dog", "traffic light", "tv", "teddy bear"]


def guided_fpn(**kwargs) -> LanguageGuidedFPN:
    visual = CLIPResNet(layers=(1, 1, 1, 1), width=8, head_width=16, embed_dim=32, resolution=64, norm="BN")
    text_encoder = CLIPTextEncoder(width=32, heads=4, layers=2, output_dim=32, context_length=24)
    language = PromptedTextEncoder(
        class_names=NAMES,
        text_encoder=text_encoder,
        sentences=SentenceReader(n_ctx=8),
        decoder_width=16,
        decoder_layers=1,
    )
    kwargs = {"in_features": ["res2", "res3", "res4", "res5"], "out_channels": 16, **kwargs}
    kwargs.setdefault("top_block", "max_pool")
    return LanguageGuidedFPN(visual=visual, language=language, **kwargs)


def loop_targets(boxes, classes, num_classes, size):
    """Return targets by the released definition in plain loops."""
    height, width = size
    target = torch.zeros(len(boxes), num_classes, height, width, dtype=torch.bool)
    for image, (image_boxes, image_classes) in enumerate(zip(boxes, classes, strict=True)):
        for box, label in zip(image_boxes, image_classes, strict=True):
            x1, y1, x2, y2 = (int(v / 4) for v in box.tolist())
            x1, x2 = (min(max(v, 0), width - 1) for v in (x1, x2))
            y1, y2 = (min(max(v, 0), height - 1) for v in (y1, y2))
            target[image, label, y1:y2, x1:x2] = True
    return target


def box_loss(scores, boxes, classes, stride=32, **kwargs):
    return pixel_text_loss(scores, [Boxes(b) for b in boxes], classes, stride, **kwargs)


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "definition"])
@pytest.mark.parametrize("name", ["96x160", "oneempty_96x160", "all_tiny_NaN"])
def test_target_loss_and_gradient_equal_the_original(reference, name, kernels):
    record = reference(f"aux_target_{name}")
    scores = record.inputs["score_map"].requires_grad_()
    boxes = [record.inputs[f"boxes{i}"] for i in range(len(scores))]
    classes = [record.inputs[f"labels{i}"] for i in range(len(scores))]
    target = region_targets([Boxes(b) for b in boxes], classes, scores.shape[1], scores.shape[2:])
    assert_close(target.float(), record.outputs["target"])
    assert_close(target.any(1, keepdim=True).expand_as(target).float(), record.outputs["mask"])
    loss = box_loss(scores, boxes, classes, stride=4, kernels=kernels)  # recorded at the target's size
    loss.backward()
    if "NaN" in name:  # the original divides 0 by 0 if no box covers a cell
        assert torch.isnan(record.outputs["loss"])
        assert loss == 0
        assert torch.count_nonzero(scores.grad) == 0
    else:
        assert_close(loss, record.outputs["loss"], atol=1e-6, rtol=1e-5)
        assert_close(scores.grad, record.outputs["grad"], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_target_equals_plain_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 12, (3,), generator=generator).tolist()
    corners = [torch.rand(n, 2, 2, generator=generator) * 180 - 10 for n in counts]
    boxes = [torch.cat([c.amin(1), c.amax(1)], dim=1) for c in corners]
    classes = [torch.randint(0, 4, (n,), generator=generator) for n in counts]
    target = region_targets([Boxes(b) for b in boxes], classes, 4, (24, 40))
    assert target.any() or sum(counts) == 0
    assert torch.equal(target, loop_targets(boxes, classes, 4, (24, 40)))


def test_mask_target_reads_polygons_and_bitmaps_alike():
    """A rectangle with corners on cells equals its box. Another class and an empty image stay separate."""
    rectangle = np.array([8, 12, 40, 12, 40, 28, 8, 28], dtype=np.float64)
    bitmap = torch.zeros(1, 64, 100, dtype=torch.bool)
    bitmap[0, 12:28, 8:40] = True
    classes = [torch.tensor([1]), torch.tensor([], dtype=torch.int64)]
    boxes = [Boxes([[8, 12, 40, 28]]), Boxes([])]
    expected = region_targets(boxes, classes, 3, (16, 32))
    for masks in (
        [BitMasks(bitmap), BitMasks(torch.zeros(0, 64, 100))],
        [PolygonMasks([[rectangle]]), PolygonMasks([])],
    ):
        assert torch.equal(region_targets(masks, classes, 3, (16, 32)), expected)


def test_masks_of_a_class_join_and_those_of_others_do_not():
    squares = [np.array([x, 0, x + 16, 0, x + 16, 16, x, 16], dtype=np.float64) for x in (0, 8, 32)]
    target = region_targets([PolygonMasks([[s] for s in squares])], [torch.tensor([0, 0, 2])], 3, (8, 16))
    assert target.sum(dim=(0, 2, 3)).tolist() == [4 * 6, 0, 4 * 4]


def test_loss_reads_only_pixels_inside_boxes_of_the_upsampled_map():
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    boxes, classes = [torch.tensor([[0.0, 0.0, 8.0, 4.0]])], [torch.tensor([1])]
    up = F.interpolate(logits, size=(16, 16), mode="bilinear", align_corners=False)
    inside = up[0, :, 0, :2]
    expected = (F.softplus(inside[0]) + F.softplus(-inside[1])).sum() / 4
    assert_close(box_loss(logits, boxes, classes), expected)


def test_loss_in_half_precision_is_finite_and_near():
    logits = 14 * torch.randn(1, 3, 4, 4)
    boxes, classes = [torch.tensor([[10.0, 10.0, 90.0, 70.0]])], [torch.tensor([2])]
    full = box_loss(logits, boxes, classes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = box_loss(logits.bfloat16(), boxes, classes)
    assert half.dtype == torch.float32
    assert_close(half, full, rtol=2e-2, atol=0.0)


def test_scores_are_cosines_and_logits_are_those_over_tau():
    dense, text = torch.randn(2, 8, 3, 5), torch.randn(1, 4, 8)
    scores, logits = pixel_text_scores(dense, text, tau=0.07)
    assert scores.shape == (2, 4, 3, 5)
    expected = F.cosine_similarity(dense[1, :, 2, 4], text[0, 3], dim=0)
    assert_close(scores[1, 3, 2, 4], expected)
    assert_close(logits, scores / 0.07)


class RecordedVisual(Backbone):
    """A visual encoder that returns recorded features."""

    embedding_stride = 32

    def __init__(self, record):
        super().__init__()
        self.features = {
            "res5": record.inputs["x3"],
            "global_embedding": record.inputs["x_global"],
            "dense_embedding": record.inputs["x_local"],
        }

    def output_shape(self):
        return {"res5": ShapeSpec(channels=512, stride=32)}

    def forward(self, x):
        return self.features


@pytest.mark.parametrize("kind, concat_logits", [("det", True), ("seg", False)])
def test_score_map_and_guided_level_equal_the_original(reference, kind, concat_logits):
    """From the visual encoder's outputs to the pyramid's inputs, for detection and for segmentation."""
    record = reference(f"{kind}_head_path")
    language = released_language(record)
    model = LanguageGuidedFPN(
        visual=RecordedVisual(record),
        language=language,
        in_features=["res5"],
        out_channels=8,
        top_block="max_pool",
        concat_logits=concat_logits,
    )
    seen = []
    model.fpn.fpn_lateral5.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    scores = model(torch.empty(0))["score_map"]
    text = language(record.inputs["x_global"], record.inputs["x_local"])
    assert_close(text, record.outputs["text_embeddings"], atol=1e-5, rtol=1e-4)
    if kind == "det":
        text_base = language.text_encoder(language.prompts, language.contexts)
        assert_close(text_base, record.outputs["text_base"], atol=1e-5, rtol=1e-4)
        assert_close(scores / model.tau, record.outputs["score_map3"], atol=1e-4, rtol=1e-4)
        up = F.interpolate(scores / model.tau, scale_factor=8, mode="bilinear")
        assert_close(up, record.outputs["score_map0"], atol=1e-4, rtol=1e-4)
    else:
        assert_close(scores, record.outputs["score_map"], atol=1e-5, rtol=1e-4)
        assert_close(scores / model.tau, record.outputs["identity_head_input"], atol=1e-4, rtol=1e-4)
    assert_close(seen[0], record.outputs["concat3"], atol=1e-4, rtol=1e-4)


def test_outputs_are_the_declared_pyramid_and_the_score_map():
    model = guided_fpn().eval()
    features = model(torch.rand(2, 3, 64, 128))
    for name, shape in model.output_shape().items():
        assert features[name].shape == (2, shape.channels, 64 // shape.stride, 128 // shape.stride)
    assert set(model.output_shape()) == {"p2", "p3", "p4", "p5", "p6"}
    embeddings = {"text_embeddings", "global_embedding", "dense_embedding"}
    assert set(features) - set(model.output_shape()) == {"score_map", *embeddings}
    assert features["score_map"].shape == (2, 5, 2, 4)
    assert features["score_map"].abs().max() <= 1
    assert model.size_divisibility == 32


@pytest.mark.parametrize("concat_logits", [True, False])
def test_the_pyramid_reads_the_score_map_over_tau_or_itself(concat_logits):
    model = guided_fpn(concat_logits=concat_logits).eval()
    seen = []
    model.fpn.fpn_lateral5.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    scores = model(torch.rand(1, 3, 64, 64))["score_map"]
    assert_close(seen[0][:, -5:], scores / 0.07 if concat_logits else scores)


def test_denoising_leaves_out_the_classes_that_are_likely_nowhere():
    peak = torch.full((2, 3, 2, 2), 0.1)
    peak[0, 0, 0, 1] = peak[0, 2, 1, 0] = 0.9  # classes 0 and 2 of the first image; none of the second
    expected = peak.clone()
    expected[0, 1] = -1
    assert torch.equal(denoised_scores(peak, tau=0.1, threshold=0.5), expected)


def test_denoising_changes_the_score_map_of_evaluation_alone():
    model, images = guided_fpn(tau=0.01).eval(), torch.rand(2, 3, 64, 128)
    with torch.no_grad():
        before = model(images)
        likely = (before["score_map"] / 0.01).softmax(dim=1).amax(dim=(2, 3))
        model.denoise = likely.mean().item()  # some classes are below, and some above
        after = model(images)
        assert torch.equal(after["score_map"], denoised_scores(before["score_map"], 0.01, model.denoise))
        assert after["score_map"].min() == -1
        assert torch.equal(after["p5"], before["p5"])
        assert model.train()(images)["score_map"].min() > -1


def test_score_maps_of_other_words_stand_beside_those_of_the_classes():
    model = guided_fpn().eval()
    with torch.no_grad():
        features = model(torch.rand(2, 3, 64, 128))
        maps = model.score_maps(features, ["zebra", "tv", "zebra", "person"])
        text = model.language.embed(["zebra"], features["global_embedding"], features["dense_embedding"])
    zebra, _ = pixel_text_scores(features["dense_embedding"], text, model.tau)
    assert torch.equal(maps[:, [1, 3]], features["score_map"][:, [3, 0]])
    assert torch.equal(maps[:, [0, 2]], zebra.expand(-1, 2, -1, -1))


def test_score_maps_of_features_in_half_precision_are_float32():
    model, images = guided_fpn().eval(), torch.rand(2, 3, 64, 128)
    with torch.no_grad():
        expected = model.score_maps(model(images), ["zebra", "tv"])
        with torch.autocast("cpu", torch.bfloat16):
            features = model(images)
        maps = model.score_maps(features, ["zebra", "tv"])
    assert features["dense_embedding"].dtype == torch.bfloat16
    assert_close(maps, expected, atol=0.05, rtol=0)


def test_without_concatenation_the_pyramid_is_that_of_the_features_alone():
    model = guided_fpn(concat="none").eval()
    images = torch.rand(1, 3, 64, 64)
    outputs = model(images)
    pyramid = model.fpn(model.visual(images))
    assert all(torch.equal(outputs[name], level) for name, level in pyramid.items())
    assert outputs["score_map"].shape == (1, 5, 2, 2)


def test_gradients_arrive_everywhere_but_in_the_text_encoder():
    model = guided_fpn(
        in_features=["res3", "res4", "res5"],
        top_block="p6_p7_without_relu",
    )
    with torch.no_grad():  # CLIP's zeros in each block's last norm stop gradients
        for name, parameter in model.visual.named_parameters():
            if name.endswith("bn3.weight"):
                parameter.fill_(1.0)
    sum(f.square().sum() for f in model(torch.rand(2, 3, 64, 64)).values()).backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and parameter.grad.abs().max() > 0
        # A bias on the keys of attention has no effect, because softmax ignores constants.
        expected = "text_encoder" not in name and not name.endswith("k_proj.bias")
        if expected or "text_encoder" in name:
            assert reached == expected, name


def test_p7_is_p6_convolved_without_relu():
    block = LastLevelP6P7WithoutReLU(4, 4)
    p6, p7 = block(torch.randn(1, 4, 8, 8))
    assert p6.min() < 0
    assert_close(p7, block.p7(p6))
    assert not torch.equal(p7, block.p7(p6.relu()))


@pytest.mark.parametrize("level", ["res4", "res9"])
def test_the_score_map_joins_the_level_of_its_own_stride(level):
    with pytest.raises(ValueError, match="stride 32, as res5 has"):
        guided_fpn(level=level)


def test_shape_declared_for_the_guided_level_has_the_classes_added():
    guided = guided_fpn().fpn.bottom_up.output_shape()
    assert guided["res5"] == ShapeSpec(channels=8 * 32 + len(NAMES), stride=32)
    assert guided["res4"].channels == 8 * 16


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "definition"])
def test_the_softmax_loss_gives_a_pixel_to_the_smallest_object(kernels):
    """Cross-entropy at stride 4 inside boxes, written out. An added constant changes nothing."""
    boxes = [torch.tensor([[0.0, 0, 40, 40], [8, 8, 24, 24], [36, 0, 64, 16]]), torch.zeros(0, 4)]
    classes = [torch.tensor([1, 3, 0]), torch.zeros(0, dtype=torch.int64)]
    scores = (2 * torch.rand(2, 5, 3, 4) - 1).requires_grad_()
    labels = torch.full((2, 12, 16), -1)
    for box, label in ((boxes[0][0], 1), (boxes[0][2], 0), (boxes[0][1], 3)):  # largest first
        x1, y1, x2, y2 = (box / 4).long().tolist()
        labels[0, y1 : min(y2, 11), x1 : min(x2, 15)] = label
    logits = F.interpolate(scores / 0.07, (12, 16), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(logits, labels, ignore_index=-1)
    shapes = [Boxes(b) for b in boxes]
    loss = pixel_text_softmax_loss(scores, shapes, classes, 16, 0.07, kernels)
    assert_close(loss, expected)
    assert_close(*(torch.autograd.grad(x, scores)[0] for x in (loss, expected)), atol=1e-6, rtol=1e-5)
    assert_close(pixel_text_softmax_loss(scores + 0.3, shapes, classes, 16, 0.07, kernels), expected)


def test_the_softmax_loss_reads_masks_and_is_zero_without_objects():
    square = [np.array([8, 12, 40, 12, 40, 28, 8, 28], dtype=np.float64)]
    scores, classes = 2 * torch.rand(1, 3, 4, 8) - 1, [torch.tensor([1])]
    of_box = pixel_text_softmax_loss(scores, [Boxes(torch.tensor([[8.0, 12, 40, 28]]))], classes, 16)
    assert_close(pixel_text_softmax_loss(scores, [PolygonMasks([square])], classes, 16), of_box)
    nothing = pixel_text_softmax_loss(scores, [Boxes(torch.zeros(0, 4))], [classes[0][:0]], 16)
    assert nothing == 0


@pytest.mark.parametrize("neck", [SimpleFeaturePyramid, None], ids=["SimpleFeaturePyramid", "none"])
def test_any_neck_or_none_follows_the_guided_features(neck):
    parts = guided_fpn()
    guidance = {"visual": parts.visual, "language": parts.language}
    if neck is None:
        model = LanguageGuidedFeatures(**guidance)
    else:
        model = LanguageGuidedNeck(neck=lambda x: neck(x, "res5", 16, (4.0, 2.0, 1.0)), **guidance)
    assert model.size_divisibility == 32
    features = model(torch.randn(2, 3, 64, 96))
    assert features["score_map"].shape == (2, len(NAMES), 2, 3)
    for name, shape in model.output_shape().items():
        expected = (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
        assert features[name].shape == expected, name
    guided = "p5" if neck else "res5"
    features[guided].sum().backward()
    assert model.language.contexts.grad.any()
