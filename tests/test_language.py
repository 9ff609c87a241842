from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import nn
from torch.testing import assert_close

from configs import prepared_cfg
from denseclip_d2.engine import Trainer
from denseclip_d2.language import PromptedTextEncoder
from denseclip_d2.language.context_decoder import ContextDecoder
from denseclip_d2.language.prompts import check_class_names, tokenize_names
from denseclip_d2.language.sentences import SentenceReader
from denseclip_d2.language.text_encoder import CLIPTextEncoder
from denseclip_d2.shapes.dataset import CLASS_NAMES

SMALL = {"width": 32, "heads": 4, "layers": 2, "output_dim": 32, "quick_gelu": True}
NAMES = ["person", "hot dog", "traffic light"]
SHAPES = Path(__file__).resolve().parents[1] / "configs/Shapes/denseclip_retinanet_tiny.yaml"


def small_text_encoder(**kwargs) -> CLIPTextEncoder:
    return CLIPTextEncoder(**{**SMALL, "context_length": 24, **kwargs})


def prompted(mode: str = "post", reading: dict | None = None, **kwargs) -> PromptedTextEncoder:
    """Build a small model.

    Args:
        reading: arguments of its :class:`SentenceReader`.
    """
    kwargs = {"class_names": NAMES, "decoder_width": 16, "decoder_layers": 1, **kwargs}
    encoder = small_text_encoder()
    usual = {"templates": ["a photo of a {}."]} if mode in ("template", "random") else {"n_ctx": 8}
    sentences = SentenceReader(**(reading or usual))
    return PromptedTextEncoder(text_encoder=encoder, sentences=sentences, mode=mode, **kwargs)


@pytest.mark.parametrize("names", ["coco", "ade", "odd"])
def test_tokens_equal_the_original(reference, names):
    """Ids at length 5 and 77. Names that are too long for the original are refused as well.

    Names that spell special tokens are excluded, because open_clip's tokenizer reads them as plain text.
    """
    record = reference("tokenizer")
    for length in (5, 77):
        for name, ids in zip(
            record.strings[f"in/{names}_names"], record.outputs[f"{names}_{length}"], strict=True
        ):
            if "<|" in name:
                continue
            if ids[0] < 0:
                with pytest.raises(ValueError, match="MAX_NAME_TOKENS"):
                    tokenize_names([name], length)
            else:
                assert tokenize_names([name], length)[0].tolist() == ids.tolist(), name


def test_length_follows_the_longest_name():
    ids = tokenize_names(["dog", "a photo of a dog."])
    assert ids.shape == (2, 8)
    assert ids.argmax(1).tolist() == [2, 7]


def test_a_name_too_long_is_refused_by_name_and_told_the_length_needed():
    with pytest.raises(ValueError, match=r"'a photo of a dog' \(5\).*Set it to 7"):
        tokenize_names(["dog", "a photo of a dog"], 5)


@pytest.mark.parametrize(
    "names, message",
    [
        ([], "No class names"),
        (["dog", "  "], "class 1 is empty"),
        (["dog", "cat", "Dog "], "more than once: 'dog'"),
        (["dog", 7], "not 7"),
    ],
)
def test_names_that_do_not_tell_classes_apart_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        check_class_names(names)


def test_a_name_with_a_special_token_is_refused():
    """The token would end the prompt too early."""
    with pytest.raises(ValueError, match="<end_of_text>"):
        tokenize_names(["dog", "a <end_of_text> b"])


def test_text_encoder_without_contexts_equals_the_original(reference):
    record = reference("text_encoder_plain")
    encoder = small_text_encoder(context_length=7, vocab_size=600)
    encoder.load_state_dict(record.weights)
    assert_close(encoder(record.inputs["texts"])[0], record.outputs["o"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("which", ["1", "2"])
def test_text_encoder_with_contexts_equals_the_original(reference, which):
    record = reference("text_context_encoder")
    encoder = small_text_encoder(context_length=13, vocab_size=600)
    encoder.load_state_dict(record.weights)
    embeddings = encoder(record.inputs["texts"], record.inputs[f"contexts{which}"])
    assert_close(embeddings, record.outputs[f"o{which}"], atol=1e-5, rtol=1e-4)


def test_plain_gelu_is_another_encoder(reference):
    record = reference("text_context_encoder")
    encoder = small_text_encoder(context_length=13, vocab_size=600, quick_gelu=False)
    encoder.load_state_dict(record.weights)
    difference = encoder(record.inputs["texts"], record.inputs["contexts1"]) - record.outputs["o1"]
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("name, width, layers, embed_dim", [("", 32, 2, 32), ("_w16", 16, 3, 40)])
def test_context_decoder_equals_the_original(reference, name, width, layers, embed_dim):
    record = reference(f"context_decoder{name}")
    decoder = ContextDecoder(embed_dim, width, 4, layers, dropout=0.0)
    decoder.load_state_dict(record.weights)
    visual = record.inputs["visual"]
    dense = visual[:, 1:].transpose(1, 2).unflatten(2, (3, 5))
    assert_close(
        decoder(record.inputs["text"], visual[:, 0], dense), record.outputs["o"], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    "mode, batch", [("post", 2), ("pre", 2), ("context", 1), ("template", 1), ("random", 1)]
)
def test_each_mode_learns_what_it_should_and_nothing_of_the_text_encoder(mode, batch):
    model = prompted(mode)
    embeddings = model(torch.rand(2, 32, requires_grad=True), torch.rand(2, 32, 3, 4))
    assert embeddings.shape == (batch, 3, 32)
    if embeddings.requires_grad:
        embeddings.square().sum().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[0] for name in learned} == {
        "post": {"contexts", "gamma", "context_decoder"},
        "pre": {"queries", "context_decoder"},
        "context": {"contexts"},
        "template": set(),
        "random": set(),
    }[mode]
    assert learned == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if "contexts" in learned:
        assert torch.count_nonzero(model.contexts.grad) == model.contexts.numel()


def test_post_model_prompting_starts_as_a_whisper():
    """gamma starts at 1e-4: at first the image hardly changes the text. Contexts have unit variance."""
    model = prompted("post", {"n_ctx": 16}).eval()
    visual = torch.rand(2, 32), torch.rand(2, 32, 3, 4)
    text = model.text_encoder(model.prompts, model.contexts)
    refined = model(*visual)
    assert_close(model.gamma, torch.full((32,), 1e-4))
    assert 0 < (refined - text).abs().max() < 1e-2
    assert 0.7 < model.contexts.std() < 1.0  # a normal distribution truncated at 2 standard deviations: 0.88


def test_template_speaks_the_whole_sentence():
    model = prompted("template")
    assert model.prompts.tolist() == tokenize_names([f"a photo of a {n}." for n in NAMES]).tolist()


def test_templates_have_one_mean_of_normalized_embeddings():
    templates = ["a photo of a {}.", "a drawing of a {}.", "{}"]
    names = ["dog", "sofa|couch"]
    model = prompted("template", {"templates": templates, "normalize": True}, class_names=names).eval()

    def embedded(*words):
        sentences = tokenize_names([template.format(word) for word in words for template in templates])
        each = F.normalize(model.text_encoder.encode_unpacked(sentences)[0], dim=1)
        return F.normalize(each.mean(0), dim=0)

    expected = torch.stack([embedded("dog"), embedded("sofa", "couch")])
    visual = torch.rand(2, 32), torch.rand(2, 32, 3, 4)
    assert_close(model(*visual)[0], expected)
    assert_close(model.encode_names(names[::-1], None)[0], expected.flip(0))
    assert_close(model.precompute_()(*visual)[0], expected)


def test_a_set_of_templates_has_a_name():
    model = prompted("template", {"templates": ["imagenet"]})
    assert len(model.prompts) == 80 * len(NAMES)
    sentences = ["itap of my person.", "itap of my hot dog.", "itap of my traffic light."]
    for ids in tokenize_names(sentences, model.prompts.shape[1]):
        assert (model.prompts == ids).all(dim=1).sum() == 1


@pytest.mark.parametrize("mode", ["template", "context"])
def test_a_description_that_is_too_long_is_split_between_sentences(mode):
    first, second = "It has two wings, a beak, and very long legs.", "Some are red, others are green or blue!"
    third = "It sings."
    model = prompted(mode, {"n_ctx": 4 if mode == "context" else 0}).eval()
    whole, *parts = model.encode_names(
        [f"{first} {second} {third}", first, f"{second} {third}"], model.contexts
    )[0]
    assert_close(whole, (parts[0] + parts[1]) / 2)
    short = model.encode_names([f"{first} {third}"], model.contexts)
    assert_close(short, model.text_encoder(tokenize_names([f"{first} {third}"]), model.contexts))
    shared = model.encode_names([f"{first} {second} {third}", f"{second} {first} {third}"], model.contexts)
    assert shared.shape == (1, 2, 32)  # the same sentences in two descriptions
    with pytest.raises(ValueError, match="24 positions"):
        model.encode_names(["word " * 30 + "and more. It sings."], model.contexts)


def test_random_text_belongs_to_the_name_alone():
    model = prompted("random")
    text = model(torch.rand(2, 32), torch.rand(2, 32, 3, 4))[0]
    assert text.shape == (3, 32)
    assert_close(model.encode_names(["zebra", NAMES[1]], None)[0, 1], text[1])
    assert_close(model.encode_names([f" {NAMES[1].upper()}", "\udcff"], None)[0, 0], text[1])
    assert_close(text.norm(dim=1), torch.ones(3), atol=0.5, rtol=0)


@pytest.mark.parametrize(
    "mode, kwargs",
    [("post", {"class_names": ["a&b", "a&amp;b"]}), ("template", {"reading": {"templates": ["a photo"]}})],
)
def test_names_that_read_the_same_are_refused(mode, kwargs):
    with pytest.raises(ValueError, match="read the same"):
        prompted(mode, **kwargs)


def test_names_and_contexts_must_fit_the_positions():
    with pytest.raises(ValueError, match="24 positions"):
        prompted(reading={"n_ctx": 22})


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode is 'prefix'; use one of post"):
        prompted("prefix")


def test_every_text_encoder_parameter_is_frozen():
    encoder = small_text_encoder()
    assert len(list(encoder.parameters())) == 5 + 12 * SMALL["layers"]
    assert not [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]


def precomputed(mode: str = "post", **kwargs) -> PromptedTextEncoder:
    """Build the model of ``PROMPT.PRECOMPUTED``: like :func:`prompted` without a text encoder."""
    kwargs = {"class_names": NAMES, "decoder_width": 16, "decoder_layers": 1, **kwargs}
    return PromptedTextEncoder(text_encoder=None, sentences=None, embed_dim=32, mode=mode, **kwargs)


@pytest.mark.parametrize("mode", ["post", "context", "template"])
def test_precomputed_text_gives_the_same_numbers_without_the_text_encoder(mode):
    model, visual = prompted(mode).eval(), (torch.rand(2, 32), torch.rand(2, 32, 3, 4))
    with torch.no_grad():
        before = model(*visual)
        assert torch.equal(model.precompute_()(*visual), before)
    weights = model.state_dict()
    assert not [name for name in weights if name.startswith(("text_encoder", "contexts"))]
    assert weights["text_embeddings"].shape == (3, 32)
    loaded = precomputed(mode).eval()
    loaded.load_state_dict(weights, strict=True)
    assert torch.equal(loaded(*visual), before)
    assert torch.equal(loaded.precompute_()(*visual), before)  # nothing is left to compute


def test_text_that_depends_on_the_image_cannot_be_precomputed():
    with pytest.raises(ValueError, match="'pre'.*cannot be precomputed"):
        prompted("pre").precompute_()
    with pytest.raises(ValueError, match="'pre'.*PRECOMPUTED to False"):
        precomputed("pre")


@pytest.mark.parametrize("mode", ["post", "context", "template"])
def test_folded_text_cannot_be_trained(mode):
    with pytest.raises(ValueError, match="PRECOMPUTED to False"):
        prompted(mode).precompute_()(torch.rand(1, 32), torch.rand(1, 32, 3, 4))


def test_the_trainer_refuses_folded_text_before_anything_is_read():
    cfg = prepared_cfg(
        str(SHAPES), ["MODEL.DENSECLIP.PROMPT.PRECOMPUTED", True, "DATASETS.TRAIN", ("not there",)]
    )
    with pytest.raises(ValueError, match="PRECOMPUTED to False"):
        Trainer(cfg)


def test_a_detector_is_built_folded_from_its_config_and_loads_an_exported_one():
    opts = ["MODEL.DENSECLIP.CLASS_NAMES", CLASS_NAMES, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    model = build_model(prepared_cfg(str(SHAPES), opts)).eval()
    image = [{"image": torch.randint(0, 256, (3, 64, 96))}]
    with torch.no_grad():
        before = model(image)[0]["instances"]
    model.backbone.language.precompute_()
    loaded = build_model(
        prepared_cfg(str(SHAPES), [*opts, "MODEL.DENSECLIP.PROMPT.PRECOMPUTED", True])
    ).eval()
    loaded.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        after = loaded(image)[0]["instances"]
    assert len(before) and torch.equal(after.pred_boxes.tensor, before.pred_boxes.tensor)
    assert torch.equal(after.scores, before.scores)


def test_a_folded_detector_still_checks_its_class_names():
    names = ["MODEL.DENSECLIP.CLASS_NAMES", ("dog", "Dog "), "MODEL.DENSECLIP.PROMPT.PRECOMPUTED", True]
    with pytest.raises(ValueError, match="more than once"):
        build_model(prepared_cfg(str(SHAPES), names))


def test_contexts_begin_from_words():
    """Like CoOp: contexts start from the embeddings of tokens, so that the prompt is the sentence."""
    model = prompted("context", {"n_ctx": 4}, context_init="a photo of a")
    sentence = tokenize_names([f"a photo of a {name}" for name in NAMES])
    assert_close(model(torch.rand(1, 32), torch.rand(1, 32, 2, 2))[0], model.text_encoder(sentence)[0])
    nn.init.normal_(model.text_encoder.token_embedding.weight)
    model.init_contexts()
    assert_close(model.contexts[0, 0], model.text_encoder.token_embedding.weight[sentence[0, 1]])


def test_the_spread_of_contexts_can_be_that_of_tokens():
    assert 0.014 < prompted("post", {"n_ctx": 16}, context_std=0.02).contexts.std() < 0.02


@pytest.mark.parametrize(
    "mode, words, message",
    [
        ("post", "a photo of a red", "has 5 tokens, but n_ctx is 4. Set n_ctx to 5"),
        ("pre", "a photo of a", "mode 'pre' learns no contexts"),
        ("template", "a photo of a", "mode 'template' learns no contexts"),
    ],
)
def test_words_that_contexts_cannot_begin_from_are_refused(mode, words, message):
    with pytest.raises(ValueError, match=message):
        prompted(mode, {"n_ctx": 4}, context_init=words)


@pytest.mark.parametrize("mode", ["post", "pre", "context", "template"])
def test_any_names_are_embedded_as_the_models_own_would_be(mode):
    """Beside the model's names, a class name keeps its embedding. An unknown name gets another one."""
    model, image = prompted(mode).eval(), (torch.rand(2, 32), torch.rand(2, 32, 3, 4))
    own = model(*image)
    new = model.embed(["a dog's wet nose, seen from far away"], *image)
    assert new.shape == (len(own), 1, 32)
    assert (own - new).abs().amax(dim=2).min() > 1e-4
    if mode != "post":  # names do not attend to one another
        assert_close(model.embed([NAMES[1]], *image), own[:, 1:2], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="empty"):
        model.embed([" "], *image)


def test_folded_text_has_no_other_names():
    with pytest.raises(ValueError, match="no text encoder"):
        precomputed().eval().embed(["a dog"], torch.rand(1, 32), torch.rand(1, 32, 2, 2))
