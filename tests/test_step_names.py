"""Training steps that read some of the names: ``MODEL.DENSECLIP.PROMPT.NAMES_PER_STEP``."""

import json
import multiprocessing
from math import ceil
from pathlib import Path

import pytest
import torch
from detectron2.structures import PolygonMasks
from detectron2.utils.events import EventStorage
from test_language import prompted
from test_open_vocabulary import SYSTEMS, image, open_model
from test_survival import assert_same, checkpoint, make_config
from test_survival import run as train
from torch import nn
from torch.testing import assert_close

from denseclip_d2.guidance import sampled_softmax_logits
from denseclip_d2.language.precomputed import precomputed_text

NAMES = ("red circle", "green square", "blue cross", "dog", "violet bar|bar", "a yellow star", "ring")
PER_STEP = "MODEL.DENSECLIP.PROMPT.NAMES_PER_STEP"
READ_ALONE = ["MODEL.DENSECLIP.PROMPT.HEAD_NAMES_PER_STEP", 0]
SIGMOID = ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True]
PRE = ["MODEL.DENSECLIP.PROMPT.MODE", "pre", "MODEL.DENSECLIP.PROMPT.CONTEXT_INIT", ""]
PLAIN_CONTEXT = ["MODEL.DENSECLIP.PROMPT.MODE", "context", "MODEL.SEM_SEG_HEAD.DROPOUT", 0.0]


def gradients(model: nn.Module, inputs: list[dict]) -> tuple[dict, dict]:
    """Return the losses of a step and the gradients of all parameters, with equal random numbers."""
    model.zero_grad()
    torch.manual_seed(0)
    for module in model.modules():
        if hasattr(module, "loss_normalizer"):
            module.loss_normalizer = 100.0
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients_close(own: dict, expected: dict) -> None:
    """Compare gradients to the rounding of the greatest, for before a norm a bias has none but rounding."""
    assert own.keys() == expected.keys()
    greatest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        atol = 1e-5 * greatest.item()
        assert_close(own[name], gradient, atol=atol, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


def objects(system: str, classes: tuple[int, ...] = (0, 2)) -> dict:
    """Return an image with objects of these classes, and stripes of them as labels."""
    x = image(labels=True, objects=True)
    x["instances"] = x["instances"][torch.arange(len(classes)) % 2]
    x["instances"].gt_classes = torch.tensor(classes)
    boxes = x["instances"].gt_boxes.tensor[:, [0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()
    x["instances"].gt_masks = PolygonMasks([[box] for box in boxes])
    if system == "semantic_fpn":
        x["sem_seg"][:] = torch.tensor(classes)[torch.arange(96) % len(classes)]
        x["sem_seg"][:4] = 255
    return x


def some_and_all(system: str, number: int, *opts) -> tuple[nn.Module, nn.Module]:
    """Return two models with the same weights, of which the first reads some names in a step."""
    some, every = (open_model(system, NAMES, *opts, PER_STEP, n).train() for n in (number, 0))
    every.load_state_dict(some.state_dict())
    return some, every


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_whose_objects_have_all_names_is_the_plain_step(system):
    some, every = some_and_all(system, 1, "MODEL.SEM_SEG_HEAD.DROPOUT", 0.0)
    inputs = [objects(system, (0, 1, 2, 3)), objects(system, (4, 5, 6, 2))]
    if system == "semantic_fpn":
        inputs[0]["sem_seg"][-1] = 7  # "background"
    for model in (some, every):
        model.backbone.language.context_decoder.eval()  # without dropout
    (losses, own), (expected, others) = gradients(some, inputs), gradients(every, inputs)
    assert_close(losses, expected)
    assert_gradients_close(own, others)


@pytest.mark.parametrize("system", SYSTEMS)
def test_heads_and_losses_see_names_that_the_step_does_not_read(system):
    """All of them here, and the embeddings of their last reading are still right. The image refines each."""
    some, every = some_and_all(system, 1, "MODEL.SEM_SEG_HEAD.DROPOUT", 0.0)
    read = []
    some.backbone.language.text_encoder.register_forward_hook(
        lambda _, args, text: read.append(text.shape[1])
    )
    for model in (some, every):
        model.backbone.language.context_decoder.eval()  # without dropout
        nn.init.constant_(model.backbone.language.gamma, 1)
    inputs = [objects(system), objects(system, (2, 5))]
    losses, own = gradients(some, inputs)
    expected, others = gradients(every, inputs)
    assert_close(losses, expected, atol=1e-5, rtol=1e-4)
    assert len(NAMES) <= read[0] > read[1]  # at first all, and then those of the step
    text = "backbone.language.contexts"
    assert own.keys() == others.keys() and not torch.allclose(own.pop(text), others.pop(text), rtol=1e-2)
    assert_gradients_close(own, others)


def test_a_step_has_other_names_beside_those_it_reads_and_they_stand_for_all():
    language, seen = prompted(class_names=NAMES, names_per_step=2, head_names_per_step=5), set()
    for _ in range(12):
        with language.names_of_step(torch.tensor([3])) as step:
            assert len(step.read) <= 3 and len(step.index) == 5 and 3 in step.index[step.read]
            assert step.weights.tolist() == [1 if i == 3 else 1.5 for i in step.index.tolist()]
            text = language.encode_step_names()
            assert_close(text[0], language.encode_names(NAMES, language.contexts)[0][step.index])
            seen |= {*step.index.tolist()} - {*step.index[step.read].tolist()}
    assert seen == {*range(len(NAMES))} - {3}


def test_what_a_step_reads_has_the_values_of_the_last_reading_and_the_gradient_of_this_one():
    language = prompted(class_names=NAMES, names_per_step=2)
    last = language.encode_all()
    with language.names_of_step(torch.tensor([3])) as step:
        nn.init.normal_(language.contexts)
        text = language.encode_step_names()[0]
    anew, weights = language.encode_class_names(language.contexts)[0][step.index], torch.randn(text.shape)
    assert_close(text, last[step.index])
    assert not torch.allclose(text, anew, atol=1e-3)
    own, expected = (torch.autograd.grad((x * weights).sum(), language.contexts) for x in (text, anew))
    assert_close(own, expected)


def test_other_names_and_a_resumed_run_of_other_names_are_read_anew():
    language = prompted(class_names=NAMES, names_per_step=2)
    with language.names_of_step(torch.tensor([3])):
        language.encode_step_names()
    state, others = language.steps_state(), NAMES[::-1]
    resumed = prompted(class_names=others, names_per_step=2)
    resumed.load_state_dict(language.state_dict())
    resumed.load_steps_state(state)
    language.set_class_names(others)
    for encoder in (language, resumed):
        with encoder.names_of_step(torch.tensor([3])) as step:
            expected = encoder.encode_names(others, encoder.contexts)[0][step.index]
            assert_close(encoder.encode_step_names()[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("system", ["semantic_fpn", "mask_rcnn"])
def test_as_many_names_as_there_are_change_no_bit(system):
    some, every = some_and_all(system, 8)
    inputs = [objects(system), objects(system, (2, 5))]
    assert_same(gradients(some, inputs), gradients(every, inputs))


def test_the_sum_of_a_softmax_has_the_expectation_of_that_of_all_names():
    logits, turns = torch.randn(2, 6, 3), torch.tensor([[0, 1, 2], [0, 3, 4], [0, 1, 5]])
    weights = torch.tensor([1.0, 3.0, 3.0])  # class 0 is in each step, the others in one of three
    turns[2, 1] = 0
    sums = [
        sampled_softmax_logits(logits[:, turn], weights.where(turn > 0, 1)).exp()[:, first:].sum(1)
        for first, turn in zip((0, 0, 1), turns, strict=True)
    ]
    assert_close(sum(sums) / 3, logits.exp().sum(1))


def test_a_step_has_the_logits_and_targets_of_its_names():
    some, every = some_and_all("retinanet", 2, *PLAIN_CONTEXT, *READ_ALONE)
    seen, index = [], []

    def losses(anchors, logits, labels, *others) -> dict:
        index.append(some.backbone.language.step_names)
        seen.append((torch.cat(logits, dim=1), torch.stack(labels)))
        return {}

    for model in (some, every):
        model.losses = losses
        with EventStorage():
            model([objects("retinanet", (5, 3)), objects("retinanet")])
    (logits, labels), (all_logits, all_labels) = seen
    index = index[0].index
    assert {0, 2, 3, 5} <= {*index.tolist()} and len(index) < len(NAMES)
    assert_close(logits, all_logits[:, :, index])
    ignored, background = torch.tensor([-1]), torch.tensor([len(NAMES)])
    assert torch.equal(torch.cat([index, background, ignored])[labels], all_labels)


def test_no_embedding_is_older_than_two_rounds_and_evaluation_reads_all_names_anew():
    model = open_model("retinanet", NAMES, PER_STEP, 2, *READ_ALONE)
    language, read = model.backbone.language, {}
    turns = ceil(len(NAMES) / 2)
    for step in range(4 * turns):
        with torch.no_grad():
            language.contexts += torch.randn_like(language.contexts)
        with language.names_of_step(torch.tensor([3])) as names:
            before = language.steps_state()["text"].clone()
            assert_close(language.encode_step_names()[0], before[names.index])
            now = language.encode_names(language.class_names, language.contexts)
            assert language.class_names == tuple(NAMES[i] for i in names.index.tolist())
            assert 3 in names.index and len(names.index) <= 3
            read |= {i: (step, own) for i, own in zip(names.index.tolist(), now[0].detach(), strict=True)}
            kept = language.steps_state()["text"]
            assert_close(language.unread_text, kept[[i for i in range(len(NAMES)) if i not in names.index]])
        assert all(step - last <= 2 * turns - 1 for last, _ in read.values())
        assert_close(kept[[*read]], torch.stack([own for _, own in read.values()]))
    assert len(read) == len(NAMES) and language.class_names == NAMES
    with precomputed_text(model):
        expected = language.encode_names(NAMES, language.contexts)[0]
        assert_close(language.text_embeddings, expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(kept, expected, atol=1e-3)


def test_the_score_map_guides_by_the_last_reading_of_the_other_names():
    some, every = some_and_all("retinanet", 2, *PLAIN_CONTEXT, *READ_ALONE)
    pixels, guided = torch.randn(2, 3, 64, 96), []
    level = some.backbone.level
    for model in (some, every):
        model.backbone.fpn.register_forward_pre_hook(lambda _, args: guided.append(args[0][level]))
    with some.backbone.language.names_of_step(torch.tensor([1])):
        some.backbone(pixels)
    every.backbone(pixels)
    assert_close(*guided, atol=1e-5, rtol=1e-4)


def test_a_federated_loss_is_that_of_the_names_of_the_step(monkeypatch):
    frequencies = "detectron2.modeling.roi_heads.fast_rcnn.get_fed_loss_cls_weights"
    monkeypatch.setattr(frequencies, lambda **kwargs: torch.ones(len(NAMES)))
    opts = [*SIGMOID, "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True, "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", 7]
    some, every = some_and_all("mask_rcnn", 2, *PLAIN_CONTEXT, *READ_ALONE, *opts)
    inputs, own = [objects("mask_rcnn"), objects("mask_rcnn", (2, 5))], []
    some.roi_heads.box_predictor.register_forward_hook(lambda _, args, output: own.append(output[0]))
    losses, _ = gradients(some, inputs)
    expected, _ = gradients(every, inputs)
    assert 3 <= own[0].shape[1] - 1 <= 5
    assert 0 < losses["loss_cls"] < expected["loss_cls"]  # a sum over fewer names


def test_after_an_error_the_model_has_all_of_its_names():
    model = open_model("mask_rcnn", NAMES, PER_STEP, 2).train()
    broken = [{**objects("mask_rcnn"), "image": torch.zeros(1)}]
    with EventStorage(), pytest.raises((RuntimeError, IndexError, ValueError)):
        model(broken)
    assert model.backbone.language.class_names == NAMES and model.roi_heads.num_classes == len(NAMES)
    assert model.roi_heads.box_predictor.classifier.weights is None


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(small_shapes, tmp_path):
    text = ["MODEL.DENSECLIP.CLASSIFIER", "text", "MODEL.DENSECLIP.SCORE_MAP.CONCAT", "text", PER_STEP, 5]
    cfg = make_config(small_shapes, tmp_path / "output", *text)
    train(cfg)
    whole = checkpoint(cfg, "model_final.pth")
    assert any("step_names" in state and state["step_names"][0]["step"] == 6 for state in states(whole))
    assert not any("last_text" in name for name in whole["model"])
    Path(cfg.OUTPUT_DIR, "last_checkpoint").write_text("model_0000001.pth")
    Path(cfg.OUTPUT_DIR, "model_final.pth").unlink()
    train(cfg, resume=True, seed=99)
    assert_same(whole, checkpoint(cfg, "model_final.pth"))


def states(checkpoint: dict) -> list[dict]:
    return [state for state in checkpoint["trainer"]["hooks"].values() if isinstance(state, dict)]


def write_names(rank: int, folder: Path) -> None:
    """Write the names of three steps, whose objects differ between two processes."""
    torch.set_num_threads(1)  # threads do not survive a fork
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    language, found = prompted(class_names=NAMES, names_per_step=2), []
    for _ in range(3):
        with language.names_of_step(torch.tensor([rank])) as step:
            found.append([step.index.tolist(), step.weights.tolist()])
    (folder / f"{rank}.json").write_text(json.dumps(found))


def test_two_processes_have_the_same_names(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_names, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one == two and all({0, 1} <= {*index} for index, _ in one)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.DENSECLIP.CLASSIFIER", "kway"], "layers learn weights of each class"),
        (["MODEL.DENSECLIP.SCORE_MAP.CONCAT", "scores"], "layers learn weights of each class"),
        (PRE, "prompt mode 'pre' makes all embeddings from each image"),
        ([PER_STEP, -1], "has to be a whole number of at least 0"),
        (["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0], "IGNORE_VALUE is 0, the number of a class"),
    ],
)
def test_what_cannot_read_some_names_is_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        open_model("retinanet", NAMES, PER_STEP, 2, *opts)


def test_a_model_with_weights_of_each_class_is_refused_without_a_config_too():
    model = open_model("retinanet", NAMES, "MODEL.DENSECLIP.CLASSIFIER", "kway").train()
    model.backbone.language._names_per_step = 2
    with EventStorage(), pytest.raises(ValueError, match="learned weights for each of its classes"):
        model([objects("retinanet")])
