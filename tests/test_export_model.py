import json
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import paste_masks_in_image, shapes_to_tensor
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn
from torch.testing import assert_close

from configs import prepared_cfg
from denseclip_d2 import Predictor, model_zoo
from denseclip_d2.builder import build_model_with_weights
from denseclip_d2.cli import export_model as tool
from denseclip_d2.data.transforms import ResizeShortestEdge
from denseclip_d2.evaluation.exported_file import evaluate_file
from denseclip_d2.export import FORMATS, export_model
from denseclip_d2.export.agreement import agreement
from denseclip_d2.export.decode_dense import decode
from denseclip_d2.export.export_model import _shapes
from denseclip_d2.export.folding import folded
from denseclip_d2.export.precision import PREDICTORS, quantize_int8, store_float16
from denseclip_d2.export.resize import fitted_size, resize
from denseclip_d2.export.runtimes import onnx_runtime, openvino_runtime
from denseclip_d2.export.sizes import LARGEST, longer_halves, shorter_halves, telling_sizes
from denseclip_d2.export.support import check_exportable
from denseclip_d2.export.traceable import DenseHeads, TraceableDenseDetector, paste
from denseclip_d2.export.verification import VerificationResult, _compared, verify
from denseclip_d2.shapes.vocabulary import SHAPES

needs_onnx = pytest.mark.skipif(
    not all(find_spec(name) for name in FORMATS["onnx"].packages),
    reason="onnx or onnxruntime is not installed",
)
needs_openvino = pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")
ZOO = "Shapes/denseclip_{}_tiny.yaml"


def zoo_config(system: str):
    return model_zoo.get_config(ZOO.format(system), trained=True)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Export a zoo model once. ``exported("retinanet", "onnx")`` returns the file and its verification."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def export(system: str, format: str, **options):
        key = (system, format, *options)
        if key not in done:
            file = folder / "-".join(key) / FORMATS[format].file
            file.parent.mkdir()
            done[key] = file, export_model(zoo_config(system), file, format, **options)
        return done[key]

    return export


@needs_onnx
@pytest.mark.parametrize("system", ["retinanet", "mask_rcnn", "semantic_fpn"])
def test_onnx_runtime_finds_what_the_predictor_finds(exported, system):
    file, verdict = exported(system, "onnx", score_map=True)
    assert len(set(verdict.sizes)) == 4
    # From the image file to predictions. The exported file resizes pixels like Pillow.
    image = _shapes(7)
    expected = Predictor(zoo_config(system))(image)
    with onnx_runtime(file) as run:
        given = run(np.ascontiguousarray(image[None, :, :, ::-1]))
    assert given.pop("score_map").shape[:2] == (1, len(SHAPES.class_names) + (system == "semantic_fpn"))
    if system == "semantic_fpn":
        assert verdict.pixel_mismatch <= 1e-3
        assert (given["labels"][0] == expected["sem_seg"].argmax(0).numpy()).mean() > 0.999
        return
    assert verdict.detections > 10
    found = expected["instances"]
    assert len(found) > 0
    np.testing.assert_allclose(given["boxes"], found.pred_boxes.tensor, atol=0.1)
    np.testing.assert_allclose(given["scores"], found.scores, atol=0.01)
    np.testing.assert_array_equal(given["classes"], found.pred_classes)
    if system == "mask_rcnn":
        assert (given["masks"] == found.pred_masks.numpy()).mean() > 0.999


@needs_onnx
@pytest.mark.parametrize(("precision", "size"), [("float16", 0.53), ("int8", 0.35)])
def test_files_of_fewer_bits_are_smaller_and_agree(exported, tmp_path, precision, size):
    import onnx

    images = []
    for seed in range(6):
        images.append(str(tmp_path / f"{seed}.png"))
        Image.fromarray(_shapes(seed)[:, :, ::-1]).save(images[-1])
    whole, _ = exported("retinanet", "onnx", score_map=True)
    file = tmp_path / "model.onnx"
    verdict = export_model(zoo_config("retinanet"), file, "onnx", precision=precision, images=images)
    assert verdict.images == 7 and verdict.detections > 50
    assert 0.9 < verdict.parts["boxes"] <= 1
    assert file.stat().st_size < size * whole.stat().st_size
    with onnx_runtime(file) as run:  # reshaping once failed at a level without candidates
        assert run(np.full((1, 96, 128, 3), 114, np.uint8))["boxes"].shape[1] == 4
    model = onnx.load(file)
    about = {x.key: x.value for x in model.metadata_props}
    assert about["precision"] == precision
    assert tuple(json.loads(about["class_names"])) == SHAPES.class_names
    in_8_bits = {x.output[0] for x in model.graph.node if x.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "Conv":  # the prediction layers stay as they are
            predicts = any(name in node.name for name in PREDICTORS)
            assert (node.input[1] in in_8_bits) == (precision == "int8" and not predicts), node.name


class NormBesideConvolution(nn.Module):
    """Two layers with a norm that the export cannot fuse, as those of timm's models."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.register_buffer("scale", torch.rand(8, 1, 1) + 0.5)
        self.register_buffer("shift", torch.randn(8, 1, 1))

    def forward(self, x):
        return self.second(F.relu6(self.first(x) * self.scale + self.shift))


@needs_onnx
def test_int8_rounds_each_activation_once(tmp_path):
    import onnx
    import onnxruntime

    model, x, file = NormBesideConvolution().eval(), torch.randn(1, 3, 20, 30), tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), str(file), dynamo=False, opset_version=17, input_names=["images"])
    quantized = onnx.load_from_string(quantize_int8(file.read_bytes(), [[x.numpy()]]))
    kinds = Counter(node.op_type for node in quantized.graph.node)
    assert kinds["Conv"] == 2 and kinds["QuantizeLinear"] == 3  # the image and two outputs
    assert kinds.keys() == {"Conv", "QuantizeLinear", "DequantizeLinear"}
    session = onnxruntime.InferenceSession(quantized.SerializeToString())
    (given,) = session.run(None, {"images": x.numpy()})
    expected = model(x).detach()
    assert_close(torch.from_numpy(given), expected, atol=0.02 * expected.abs().max().item(), rtol=0)


@needs_onnx
def test_weights_beyond_float16_are_refused():
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.full((2, 2), 7e4, np.float32), "fc.weight")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    node = helper.make_node("MatMul", ["x", "fc.weight"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [weights]))
    with pytest.raises(ValueError, match=r"float16 has values up to 65504, and fc.weight has 7e\+04"):
        store_float16(model.SerializeToString(), [])


@needs_onnx
@needs_openvino
def test_openvino_finds_nothing_where_nothing_is(exported):
    """OpenVINO returns one detection with score 0 and no class there."""
    file, _ = exported("mask_rcnn", "openvino")
    nothing, something = np.full((1, 130, 150, 3), 114, np.uint8), _shapes(7)[None, :, :, ::-1].copy()
    with openvino_runtime(file) as run, onnx_runtime(file) as other:
        assert {name: len(x) for name, x in run(nothing).items()} == dict.fromkeys(
            ("boxes", "classes", "masks", "scores"), 0
        )
        np.testing.assert_array_equal(run(something)["classes"], other(something)["classes"])


@needs_onnx
def test_an_onnx_file_says_what_it_is_and_has_no_text_encoder(exported):
    import onnx

    file, _ = exported("mask_rcnn", "onnx", score_map=True)
    model = onnx.load(file)
    about = {x.key: x.value for x in model.metadata_props}
    assert tuple(json.loads(about["class_names"])) == SHAPES.class_names
    assert about["source_sha256"] == model_zoo.zoo.zoo_index()[ZOO.format("mask_rcnn")].sha256
    assert json.loads(about["outputs"]) == ["boxes", "classes", "masks", "score_map", "scores"]
    assert (about["pixel_format"], about["shortest_side"], about["longest_side"]) == ("RGB", "128", "192")
    assert "PROMPT" in about["config"]
    assert str(Path.cwd()) not in "".join(about.values())
    names = [x.name for x in model.graph.initializer] + [x.name for x in model.graph.node]
    assert any("context_decoder" in name for name in names)
    assert not any("text_encoder" in name or "token_embedding" in name for name in names)
    kinds = {x.op_type for x in model.graph.node}
    assert "Conv" in kinds
    assert "BatchNormalization" not in kinds
    assert [x.dim_param or x.dim_value for x in model.graph.input[0].type.tensor_type.shape.dim] == [
        1,
        "height",
        "width",
        3,
    ]


def nodes_of(graph) -> list:
    """Return the nodes of an ONNX graph, also those inside branches."""
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return [*graph.node, *(node for own in inner for node in nodes_of(own))]


def assert_portable(content: bytes):
    """Runtimes lack branches, float64 (or compute it in float32), and Clip of integers."""
    import onnx
    from onnx import TensorProto

    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), strict_mode=True)
    nodes = nodes_of(model.graph)
    assert not {node.op_type for node in nodes} & {"If", "Loop", "Scan"}
    types = {x.name: x.type.tensor_type.elem_type for x in model.graph.value_info}
    types |= {x.name: x.data_type for x in model.graph.initializer}
    types |= {node.output[0]: a.t.data_type for node in nodes for a in node.attribute if a.HasField("t")}
    assert TensorProto.FLOAT in types.values() and TensorProto.DOUBLE not in types.values()
    clipped = {types.get(name) for node in nodes if node.op_type == "Clip" for name in node.input if name}
    assert TensorProto.INT64 not in clipped
    assert [x.version for x in model.opset_import] == [17]


@needs_onnx
@pytest.mark.parametrize("system", ["retinanet", "mask_rcnn", "semantic_fpn"])
def test_an_onnx_file_has_no_branch(exported, system):
    file, _ = exported(system, "onnx", score_map=True)
    assert_portable(file.read_bytes())


@needs_onnx
@pytest.mark.parametrize("system", ["RetinaNet", "RetinaNetGlobalNorm", "ConfigurableFCOS"])
def test_dense_detectors_without_branches_find_what_detectron2_finds(system, tmp_path):
    """More candidates than a level keeps, and more detections than an image keeps."""
    model = untrained_detector(system)
    model.max_detections_per_image, size = 40, [(64, 96), (90, 70), (32, 32)]
    whole = TraceableDenseDetector(model, shortest=0, longest=0, preprocessed=True)
    images = [np.random.default_rng(i).integers(0, 256, (*x, 3), np.uint8) for i, x in enumerate(size)]
    content = FORMATS["onnx"].content(whole, (whole.preprocess(images[0]),), {})
    assert_portable(content)
    (tmp_path / "model.onnx").write_bytes(content)
    with onnx_runtime(tmp_path / "model.onnx") as run:
        verdict = verify(run, whole, images)
    assert verdict.detections > 50


def test_torchscript_runs_where_this_package_is_not(exported):
    file, verdict = exported("retinanet", "torchscript")
    assert verdict.detections > 10
    code = (
        "import sys, json, torch, torchvision\n"
        "about = {'outputs': '', 'class_names': ''}\n"
        "model = torch.jit.load(sys.argv[1], _extra_files=about)\n"
        "boxes, classes, scores = model(torch.full((1, 130, 150, 3), 114, dtype=torch.uint8))\n"
        "assert json.loads(about['outputs']) == ['boxes', 'classes', 'scores']\n"
        "assert not [x for x in sys.modules if x.startswith(('denseclip_d2', 'detectron2'))]\n"
        "print(len(json.loads(about['class_names'])), *boxes.shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, file], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["18", "0", "4"]
    assert "batch_norm" not in str(torch.jit.load(file).inlined_graph)


def test_torch_export_takes_prepared_images(exported):
    file, verdict = exported("semantic_fpn", "torch_export", preprocessed=True)
    assert len(set(verdict.sizes)) == 4
    about = {"outputs": "", "class_names": ""}
    program = torch.export.load(file, extra_files=about)
    assert all(x.is_contiguous() for x in program.state_dict.values())
    assert not [x for x in program.graph.nodes if "batch_norm" in str(x.target)]
    model = program.module()
    assert json.loads(about["outputs"]) == ["labels"]
    images = torch.randn(3, 3, 64, 96)  # number and size differ from the traced ones
    labels = model(images)["labels"]
    assert labels.shape == (3, 64, 96)
    assert labels.max() < len(json.loads(about["class_names"]))
    assert not [name for name in model.state_dict() if "text_encoder" in name]


@pytest.mark.parametrize("system", ["RetinaNet", "ConfigurableFCOS"])
def test_norms_of_levels_are_folded_into_contiguous_weights(system):
    """Compilers fold one of these norms into the convolution of all levels, and ignore memory formats."""
    model = untrained_detector(system, "MODEL.RETINANET.NORM", "BN", "MODEL.FCOS.NORM", "BN")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    model.to(memory_format=torch.channels_last)
    whole = DenseHeads(model, shortest=0, longest=0, preprocessed=True)
    images, own = torch.randn(2, 3, 64, 96), folded(whole)
    assert not [x for x in own.modules() if isinstance(x, nn.BatchNorm2d)]
    # A 1x1 convolution may be contiguous by strides that make its output channels-last.
    assert all(x.stride() == torch.empty(x.shape).stride() for x in own.state_dict().values())
    with torch.no_grad():
        expected, given = whole(images), own(images)
    for name in expected:
        torch.testing.assert_close(given[name], expected[name], rtol=1e-4, atol=1e-3)


def assert_detections(given, expected):
    """Compare the result of ``decode`` with Detectron2's outputs for the same images."""
    found = [x["instances"] for x in expected]
    assert all(len(x) > 0 for x in found)
    given = {name: torch.from_numpy(x) for name, x in given.items()}
    assert given["images"].tolist() == [i for i, x in enumerate(found) for _ in range(len(x))]
    found = Instances.cat([Instances((1, 1), **x.get_fields()) for x in found])
    torch.testing.assert_close(given["boxes"], found.pred_boxes.tensor, rtol=0, atol=0.01)
    torch.testing.assert_close(given["scores"], found.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(given["classes"], found.pred_classes, rtol=0, atol=0)


def test_a_page_of_numpy_decodes_what_retinanets_heads_give(exported, tmp_path):
    file, verdict = exported("retinanet", "torch_export", preprocessed=True, score_map=True)
    assert len(set(verdict.sizes)) == 4
    assert verdict.detections > 10
    model = build_model_with_weights(zoo_config("retinanet")).eval()
    images = [torch.from_numpy(x[:90, :150, ::-1].copy()).movedim(2, 0).float() for x in map(_shapes, (7, 8))]
    with torch.no_grad():
        expected = model([{"image": image} for image in images])
        padded = model.preprocess_image([{"image": image} for image in images]).tensor
    assert padded.shape == (2, 3, 96, 160)
    torch.save(padded, tmp_path / "images.pt")
    code = (
        "import sys\n"
        "sys.modules.update(denseclip_d2=None, detectron2=None, torch=None)\n"  # none can be imported
        "file, folder = sys.argv[1:]\n"
        "sys.path.append(file.rpartition('/')[0])\n"
        "from decode import decode\n"
        "del sys.modules['torch']\n"
        "import torch\n"
        "about = {'decoding': ''}\n"
        "model = torch.export.load(file, extra_files=about).module(check_guards=False)\n"
        "with torch.no_grad():\n"
        "    outputs = model(torch.load(folder + '/images.pt'))\n"
        "outputs = {name: x.numpy() for name, x in outputs.items()}\n"
        "torch.save(decode(outputs, about, (90, 150)), folder + '/found.pt')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, file, tmp_path], check=True)
    given = torch.load(tmp_path / "found.pt", weights_only=False)
    assert given["score_map"].shape[:2] == (2, len(SHAPES.class_names))
    assert_detections(given, expected)


def untrained_detector(system: str, *more: str) -> nn.Module:
    """Return a dense detector whose heads predict many boxes, also outside the image."""
    opts = ["MODEL.META_ARCHITECTURE", system, "MODEL.BACKBONE.NAME", "build_clip_retinanet_fpn_backbone"]
    opts += ["MODEL.DEVICE", "cpu", "TEST.DETECTIONS_PER_IMAGE", "1000", *more]
    torch.manual_seed(0)
    model = build_model(prepared_cfg("configs/Shapes/denseclip_retinanet_tiny.yaml", opts)).eval()
    model.test_score_thresh, model.test_topk_candidates, model.test_nms_thresh = 0.0, 300, 0.3
    for layer in (model.head.cls_score, model.head.bbox_pred):
        nn.init.normal_(layer.weight, std=0.1)
    return model


@pytest.mark.parametrize("system", ["RetinaNet", "RetinaNetGlobalNorm", "ConfigurableFCOS"])
def test_boxes_are_clipped_when_the_system_clips_them(system):
    """Before or after non-maximum suppression. Untrained heads predict many boxes outside the image."""
    model = untrained_detector(system)
    if "RetinaNet" in system:  # whose scores are equal to the fifth digit, in an order that rounding decides
        model.head.cls_score.weight.data.mul_(1000)
    whole = DenseHeads(model, shortest=0, longest=0, preprocessed=True)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        model.pixel_mean.fill_(torch.nan)  # images are normalized already
        outputs = {name: x.numpy() for name, x in whole(images).items()}
        given = decode(outputs, whole.about(), (64, 96))
        model.pixel_mean.zero_(), model.pixel_std.fill_(1)
        expected = model([{"image": x} for x in images])
    assert_detections(given, expected)
    other = {
        "decoding": json.dumps(
            json.loads(whole.about()["decoding"]) | {"clipped_first": system != "RetinaNetGlobalNorm"}
        )
    }
    assert len(decode(outputs, other, (64, 96))["scores"]) != len(given["scores"])


def test_what_torch_export_does_not_follow_is_refused():
    cfg = prepared_cfg(f"configs/{ZOO.format('mask_rcnn')}", ["MODEL.WEIGHTS", "of a trained model"])
    reason = "a DenseCLIPMaskRCNN is none of DenseDetector, Semantic.* Choose --format onnx or openvino"
    with pytest.raises(ValueError, match=f"cannot be exported by --format torch_export: {reason}"):
        check_exportable(cfg, "torch_export")


@needs_onnx
def test_a_file_may_take_one_size(exported):
    import onnx

    file, verdict = exported("retinanet", "onnx", size=(96, 128))
    assert verdict.sizes == ((96, 128),) and verdict.detections > 10
    graph = onnx.load(file).graph
    shapes = [[d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in graph.input]
    assert shapes == [[1, 96, 128, 3]]
    if find_spec("onnxslim"):
        assert sum(node.op_type == "Shape" for node in graph.node) < 10


@needs_onnx
def test_an_onnx_file_may_end_at_the_heads(exported):
    file, verdict = exported("retinanet", "onnx", preprocessed=True, heads=True)
    assert len(set(verdict.sizes)) == 4 and verdict.detections > 10
    assert_portable(file.read_bytes())
    assert (file.parent / "decode.py").read_text() == DenseHeads.page.read_text()
    with onnx_runtime(file) as run:
        outputs = run(np.zeros((2, 3, 64, 96), np.float32))
    anchors = len(outputs["anchors"])
    assert outputs["logits"].shape == (2, anchors, len(SHAPES.class_names))
    assert outputs["levels"].dtype == np.int64


def test_sizes_and_heads_that_cannot_be_are_refused(tmp_path):
    for system, format, options, message in (
        ("mask_rcnn", "onnx", {"heads": True, "preprocessed": True}, "heads is for DenseDetector, Sem"),
        ("retinanet", "onnx", {"heads": True}, "--heads needs --preprocessed"),
        ("retinanet", "torchscript", {"size": (96, 128)}, "any size. Leave out --size, or choose --format o"),
        (
            "retinanet",
            "executorch",
            {"preprocessed": True},
            "takes images of one size. Give it by --size H W",
        ),
        ("retinanet", "aoti", {"heads": True, "preprocessed": True}, "--heads needs an ONNX file. Choose"),
    ):
        with pytest.raises(ValueError, match=message):
            export_model(zoo_config(system), tmp_path / "model", format, **options)


def test_torch_export_needs_prepared_images(tmp_path):
    with pytest.raises(ValueError, match="torch_export needs --preprocessed, for it can"):
        export_model(zoo_config("semantic_fpn"), tmp_path / "model.pt2", "torch_export")


def test_masks_may_stay_squares(exported):
    file, verdict = exported("mask_rcnn", "torchscript", paste_masks=False)
    assert verdict.detections > 10
    image = torch.from_numpy(_shapes(7)[None, :, :, ::-1].copy())
    boxes, _, masks, _ = torch.jit.load(file)(image)
    assert masks.shape == (len(boxes), 28, 28)
    assert 0.5 < masks.amax() <= 1


@needs_onnx
def test_a_file_is_evaluated_by_its_runtime(exported, small_shapes, tmp_path):
    cfg = zoo_config("mask_rcnn")
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (small_shapes[2],), str(tmp_path / "output")
    file, _ = exported("mask_rcnn", "onnx", score_map=True)
    results = evaluate_file(cfg, file, "onnx")[small_shapes[2]]
    assert results["bbox"]["AP50"] > 80
    assert results["segm"]["AP50"] > 80


class Blind(nn.Module):
    """A detector without detections."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Identity()

    def forward(self, inputs):
        nothing = torch.zeros(0)
        return [{"instances": Instances((8, 8), pred_boxes=Boxes([]), scores=nothing, pred_classes=nothing)}]


def test_a_file_is_not_verified_by_images_of_nothing():
    whole = TraceableDenseDetector(Blind(), shortest=0, longest=0)
    nothing = {"boxes": np.zeros((0, 4), np.float32), **dict.fromkeys(("scores", "classes"), np.zeros(0))}
    with pytest.raises(ValueError, match="Nothing is detected .* Give --images"):
        verify(lambda images: nothing, whole, [np.zeros((8, 8, 3), np.uint8)])


@needs_onnx
def test_a_file_of_fewer_bits_that_agrees_too_little_is_an_error_and_not_left_behind(tmp_path, monkeypatch):
    """The runtime changes the labels."""
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], runtime=moving_labels))
    with pytest.raises(ValueError, match="% of the labels agree; --precision float16 needs 99%"):
        export_model(zoo_config("semantic_fpn"), tmp_path / "model.onnx", "onnx", precision="float16")
    assert not list(tmp_path.iterdir())


def test_precisions_that_cannot_be_are_refused(tmp_path):
    cfg = zoo_config("retinanet")
    with pytest.raises(
        ValueError, match="--precision int8 needs an ONNX file. Choose --format onnx or openvino"
    ):
        export_model(cfg, tmp_path / "model.ts", "torchscript", precision="int8")
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match="int8 needs DATASETS.TRAIN or --images: No dataset"):
        export_model(cfg, tmp_path / "model.onnx", "onnx", precision="int8")


def test_detections_agree_by_their_scores():
    """Scores are 0.95 and 0.05 in model and file. The class of the low score differs in the file."""
    boxes = np.array(BOXES, np.float32)

    class Sure(Blind):
        def forward(self, inputs):
            found = Instances((48, 48), pred_boxes=Boxes(torch.tensor(BOXES)))
            found.scores, found.pred_classes = torch.tensor([0.95, 0.05]), torch.tensor([1, 2])
            return [{"instances": found}]

    whole = TraceableDenseDetector(Sure(), shortest=0, longest=0)
    given = {"boxes": boxes, "scores": np.array([0.95, 0.05], np.float32), "classes": np.array([1, 3])}
    image = np.zeros((48, 48, 3), np.uint8)
    assert agreement(lambda _: given, whole, [image], "int8").parts["boxes"] == pytest.approx(0.95)
    with pytest.raises(ValueError, match="95.0% of the boxes agree"):
        agreement(lambda _: given, whole, [image], "float16")


@contextmanager
def moving_labels(path):
    with onnx_runtime(path) as run:
        yield lambda images: {**(found := run(images)), "labels": np.roll(found["labels"], 3, axis=1)}


@needs_onnx
def test_onnx_labels_photographs_as_a_clip_alone_does(tmp_path):
    """The dense embedding of a model of timm, and a background by threshold, in images of several sizes."""
    cfg = model_zoo.get_config("WithoutTraining/photographs.yaml", trained=True)
    verdict = export_model(cfg, tmp_path / "model.onnx", "onnx")
    assert len(set(verdict.sizes)) == 4 and verdict.pixel_mismatch < 0.01


@needs_onnx
def test_a_file_that_differs_is_an_error_and_not_left_behind(tmp_path, monkeypatch):
    """The runtime changes the labels."""
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], runtime=moving_labels))
    with pytest.raises(ValueError, match="for an image of 256 x 341: .*% of the pixels"):
        export_model(zoo_config("semantic_fpn"), tmp_path / "model.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def found(boxes, scores, classes) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes).view(-1, 4),
        "scores": torch.tensor(scores),
        "classes": torch.tensor(classes),
    }


BOXES = [[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 9.0, 9.0]]


@pytest.mark.parametrize(
    "other",
    [
        found([[1.02, 2.0, 30.0, 40.0], BOXES[1]], [0.9, 0.4], [1, 2]),
        found(BOXES, [0.9002, 0.4], [1, 2]),
        found(BOXES, [0.9, 0.4], [3, 2]),
        found(BOXES[1:], [0.4], [2]),
        found([], [], []),
    ],
    ids=["box", "score", "class", "missing", "none"],
)
def test_what_a_file_may_not_change(other):
    model = found(BOXES, [0.9, 0.4], [1, 2])
    for pair in ((model, other), (other, model)):
        with pytest.raises(ValueError, match="have no match"):
            _compared(VerificationResult(), *pair)


def test_what_a_file_may_change():
    model = found(BOXES, [0.9, 0.4], [1, 2])
    other = found([BOXES[0], [5.0, 5.009, 9.0, 9.0]], [0.9, 0.40005], [1, 2])
    verdict = _compared(VerificationResult(), model, other)
    assert (verdict.detections, round(verdict.pixels, 3)) == (2, 0.009)
    # The detection of lowest score may be cut off by the number of detections or by the lowest score.
    assert _compared(VerificationResult(), model, found(BOXES[:1], [0.9], [1])).detections == 1
    assert _compared(VerificationResult(), found([], [], []), found([], [], [])).detections == 0


@pytest.mark.parametrize("size", [(96, 128), (120, 170), (300, 200), (128, 128), (50, 1000), (333, 500)])
def test_images_are_resized_as_pillow_resizes_them(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = ResizeShortestEdge(128, 192).get_transform(image).apply_image(image)
    fitted = fitted_size(torch.tensor(size), 128, 192)
    assert tuple(fitted) == expected.shape[:2]
    given = resize(torch.from_numpy(image).permute(2, 0, 1)[None].float(), fitted)[0].permute(1, 2, 0)
    off = (given - torch.from_numpy(expected.astype(np.float32))).abs()
    assert off.max() <= 1
    # Pillow's weights are integers over 2**22, so that some halves are not exactly halves.
    assert (off > 0).float().mean() < 6e-3
    assert tuple(fitted_size(torch.tensor(size), 0, 192)) == size


LIMITS = [(800, 1333), (128, 192), (333, 500), (512, 2048), (800, 800), (1333, 800), (1, 7)]
"""values of ``INPUT.MIN_SIZE_TEST`` and ``MAX_SIZE_TEST``"""


def detectron2_sizes(sizes: torch.Tensor, shortest: int, longest: int) -> torch.Tensor:
    shapes = [ResizeShortestEdge.get_output_shape(*size, shortest, longest) for size in sizes.tolist()]
    return torch.tensor(shapes)


def halves(shortest: int, longest: int, largest: int) -> torch.Tensor:
    sizes = longer_halves(shortest, longest, largest), shorter_halves(shortest, longest, largest)
    return torch.from_numpy(np.concatenate(sizes))


@pytest.mark.parametrize("limits", LIMITS)
def test_every_size_becomes_what_detectron2_makes_of_it(limits):
    """Some sizes scale to half pixels. Detectron2 rounds about a tenth of these down."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.arange(1, 181)
    portraits = halves(*limits, LARGEST)[::9].flip(1)
    large = torch.randint(1, LARGEST + 1, (1000, 2), generator=generator)
    for sizes in (torch.cartesian_prod(sides, sides), halves(*limits, 1500), portraits, large):
        for some in sizes.split(1000):
            given = fitted_size(some, *limits)
            torch.testing.assert_close(given, detectron2_sizes(some, *limits), rtol=0, atol=0)


def just_below(longest: int) -> torch.Tensor:
    """Return large sizes whose shorter side scales to almost a half, which float32 cannot represent."""
    low, high = torch.arange(4000, LARGEST - 400), torch.arange(LARGEST - 399, LARGEST, 2)
    low, high = torch.cartesian_prod(low, high).T
    return torch.stack([low, high], dim=1)[(2 * longest * low + high + 1) % (2 * high) == 0]


class Sizes(nn.Module):
    """The part of a ``TraceableModel`` that computes resized sizes, from an image or from numbers."""

    inputs = {"images": {1: "height", 2: "width"}}

    def __init__(self, limits: tuple[int, int]):
        super().__init__()
        self.limits = limits

    def forward(self, images):
        sides = images[0] if images.dim() == 3 else shapes_to_tensor([*images.shape[1:3]])
        return {"classes": fitted_size(sides, *self.limits)}


@needs_onnx
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("runtime", [onnx_runtime, pytest.param(openvino_runtime, marks=needs_openvino)])
def test_runtimes_compute_detectron2s_sizes(limits, runtime, tmp_path):
    file = tmp_path / "sizes.onnx"
    doubled = torch.arange(1, 2001)[:, None] * torch.tensor([2, 1])
    large = torch.randint(LARGEST // 2, LARGEST + 1, (2000, 2), generator=torch.Generator().manual_seed(0))
    sizes = torch.cat([doubled, halves(*limits, LARGEST)[::9], large, just_below(limits[1])])
    file.write_bytes(FORMATS["onnx"].content(Sizes(limits), (sizes[None, :9],), {}))
    with runtime(file) as run:
        given = torch.from_numpy(run(sizes[None].numpy())["classes"])
    torch.testing.assert_close(given, detectron2_sizes(sizes, *limits), rtol=0, atol=0)


@needs_onnx
@pytest.mark.parametrize("runtime", [onnx_runtime, pytest.param(openvino_runtime, marks=needs_openvino)])
def test_runtimes_measure_images(runtime, tmp_path):
    file = tmp_path / "sizes.onnx"
    file.write_bytes(FORMATS["onnx"].content(Sizes((800, 1333)), (torch.zeros(1, 30, 40, 1).byte(),), {}))
    with runtime(file) as run:
        for size, fitted in {
            (1024, 2048): [667, 1333],
            (1594, 797): [1333, 666],
            (3, 800): [5, 1333],
        }.items():
            assert run(np.zeros((1, *size, 1), np.uint8))["classes"].tolist() == fitted


def test_the_example_of_half_pixels():
    """In float64, 800 * (1333 / 1600) is 666.5, and 800 * (1333 / 1600.0000000000002) is less."""
    sizes = torch.tensor([[1024, 2048], [512, 1024], [400, 800], [1594, 797]])
    assert fitted_size(sizes, 800, 1333).tolist() == [[667, 1333]] * 3 + [[1333, 666]]


@pytest.mark.parametrize("limits", LIMITS[:-1])
def test_files_are_verified_with_sides_that_scale_to_a_half(limits):
    shortest, longest = limits
    sizes = [sorted(size) for size in telling_sizes(*limits)]
    low, high = sizes.pop()
    assert longest * low / high % 1 == 0.5
    assert shortest * high > longest * low
    assert len(sizes) == (shortest < longest)
    for low, high in sizes:
        assert shortest * high / low % 1 == 0.5
        assert shortest * high < longest * low


def test_images_to_verify_with_stay_small_without_a_longest_side():
    """No side has to be ``MAX_SIZE_TEST``."""
    assert max(map(max, telling_sizes(800, 10**8))) < 4000
    assert fitted_size(torch.tensor([100, 1000]), 800, 10**8).tolist() == [800, 8000]


@needs_onnx
def test_a_file_that_rounds_a_half_otherwise_is_an_error(tmp_path, monkeypatch):
    """The file rounds every half up."""
    format = FORMATS["onnx"]

    def content(*args):
        with monkeypatch.context() as patch:
            patch.setattr("denseclip_d2.export.resize.rounded_down", lambda *_: np.empty((0, 2), np.int64))
            return format.content(*args)

    monkeypatch.setitem(FORMATS, "onnx", replace(format, content=content))
    size = " x ".join(map(str, telling_sizes(128, 192)[1]))
    with pytest.raises(ValueError, match=f"differs from the model for an image of {size}"):
        export_model(zoo_config("retinanet"), tmp_path / "model.onnx", "onnx")


def test_masks_are_pasted_as_detectron2_pastes_them():
    squares = torch.rand(3, 28, 28)
    boxes = torch.tensor([[3.3, 2.1, 40.7, 30.0], [0.0, 0.0, 64.0, 48.0], [10.2, 40.0, 12.9, 47.5]])
    given = paste(squares, boxes, 48, 64)
    expected = paste_masks_in_image(squares, boxes, (48, 64), threshold=-1)
    torch.testing.assert_close(given, expected / 255, rtol=0, atol=1 / 254)
    assert paste(squares[:0], boxes[:0], 48, 64).shape == (0, 48, 64)


PRE = ["MODEL.DENSECLIP.PROMPT.MODE", "pre", "MODEL.DENSECLIP.PROMPT.CONTEXT_INIT", ""]
WINDOWS = ["TEST.SLIDING_WINDOW.ENABLED", "True"]


@pytest.mark.parametrize(
    ("config", "opts", "reason"),
    [
        ("retinanet", PRE, "PROMPT.MODE is 'pre'"),
        ("semantic_fpn", WINDOWS, "SLIDING_WINDOW"),
        ("mask_rcnn", ["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "a ProposalNetwork is none of"),
        ("mask_rcnn", ["MODEL.KEYPOINT_ON", "True"], "keypoints"),
        ("mask_rcnn", ["MODEL.WEIGHTS", ""], "WEIGHTS is empty"),
    ],
)
def test_what_cannot_be_exported_says_so(config, opts, reason):
    cfg = prepared_cfg(f"configs/Shapes/denseclip_{config}_tiny.yaml", opts)
    with pytest.raises(ValueError, match=f"cannot be exported: .*{reason}"):
        check_exportable(cfg, "onnx")


def test_the_tool_says_what_is_wrong_before_work(tmp_path):
    parse_args = tool.build_parser().parse_args
    config = ["--config-file", f"denseclip://{ZOO.format('retinanet')}", "--output", str(tmp_path)]
    for format, name in (("torchscript", "model.ts"), ("torch_export", "decode.py")):
        (tmp_path / name).write_text("of an earlier export")
        with pytest.raises(ValueError, match=f"{name} exists. Give --overwrite to replace it, or choose"):
            tool.main(parse_args([*config, "--format", format]))
        assert (tmp_path / name).read_text() == "of an earlier export"
    args = ["--config-file", "no.yaml", "--format", "torchscript", "--output", str(tmp_path)]
    with pytest.raises(ValueError, match="leave out --preprocessed"):
        tool.main(parse_args([*args, "--preprocessed", "--evaluate"]))
    with pytest.raises(ValueError, match="no.yaml"):
        tool.main(parse_args([*args, "--overwrite"]))


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("denseclip_d2.export.formats.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"model.onnx needs onnx and onnxruntime: pip install"):
        FORMATS["onnx"].check_packages()
    with pytest.raises(ValueError, match=r"model.pte needs executorch: pip install executorch"):
        FORMATS["executorch"].check_packages()


def test_a_missing_compiler_is_an_error_before_work(tmp_path):
    from torch._inductor import config

    said = r"model.aoti.pt2 needs a C\+\+ compiler .* or choose another --format"
    # Not monkeypatch, which would leave the key deleted.
    with config.patch({"cpp.cxx": ("no-compiler",)}), pytest.raises(ValueError, match=said):
        export_model(zoo_config("retinanet"), tmp_path / "model", "aoti", preprocessed=True)
