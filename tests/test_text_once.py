"""What makes text cheap: prompts packed into one sequence, and embeddings precomputed for inference."""

import copy

import pytest
import torch
from test_language import prompted, small_text_encoder
from torch import nn
from torch.testing import assert_close

from denseclip_d2.language import text_encoder as module
from denseclip_d2.language.precomputed import precomputed_text
from denseclip_d2.language.prefix_tree import build_prefix_tree
from denseclip_d2.language.prompts import tokenize_names

UNEQUAL = ["tv", "traffic light", "traffic cone", "a very long name of a class indeed", "dog"]


def random_contexts(batch: int, number: int) -> torch.Tensor:
    return torch.randn(batch, number, 32, requires_grad=True)


@pytest.mark.parametrize("max_tokens", [1, 20, 256])
@pytest.mark.parametrize("batch, n_ctx", [(1, 8), (3, 5), (1, 1)])
@pytest.mark.parametrize("names", [UNEQUAL, ["dog"], ["red dog", "red cat"]])
def test_packed_prompts_give_the_definition_and_its_gradient(monkeypatch, names, batch, n_ctx, max_tokens):
    monkeypatch.setattr(module, "PACK_TOKENS", {"cpu": max_tokens, "cuda": 0})
    monkeypatch.setattr(module, "STORED_PACKS", 2)
    encoder, ids = small_text_encoder(), tokenize_names(names, 12)
    contexts = random_contexts(batch, n_ctx)
    upstream = torch.randn(batch, len(names), 32)
    expected, embeddings = encoder.encode_unpacked(ids, contexts), encoder(ids, contexts)
    assert_close(embeddings, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(x, contexts, upstream)[0] for x in (embeddings, expected)]
    assert_close(*gradients, atol=1e-4, rtol=1e-4)
    with torch.no_grad():  # PyTorch runs another operator there
        assert_close(encoder.eval()(ids, contexts), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("names", [UNEQUAL, ["dog"]])
def test_packed_sentences_without_contexts_give_the_definition(names):
    encoder, ids = small_text_encoder(), tokenize_names([f"a photo of a {name}." for name in names])
    assert_close(encoder(ids), encoder.encode_unpacked(ids), atol=1e-5, rtol=1e-5)


def test_packing_keeps_each_beginning_once():
    ids = tokenize_names(UNEQUAL, 12)
    (pack,) = build_prefix_tree(ids, 8, 256)
    # 9 of start and contexts; 2, 3, 2 ("traffic" is shared), 9 and 2 of names and their ends.
    assert len(pack.ids) == 9 + 2 + 3 + 2 + 9 + 2
    assert pack.positions[pack.ends].tolist() == [8 + end for end in ids.argmax(1).tolist()]
    assert (pack.mask == 0).sum(1).tolist() == (pack.positions + 1).tolist()
    (sentences,) = build_prefix_tree(tokenize_names(["a photo of a dog.", "a photo of a cat."]), 0, 256)
    assert len(sentences.ids) == 5 + 2 * 3


def test_packs_are_bounded_and_hold_every_prompt_in_order():
    ids = tokenize_names(UNEQUAL, 12)
    packs = build_prefix_tree(ids, 8, 16)
    assert max(len(pack.ids) for pack in packs) == 9 + 9  # the longest prompt alone
    assert all(len(pack.ids) <= 16 for pack in packs if len(pack.ends) > 1)
    assert sum(len(pack.ends) for pack in packs) == len(UNEQUAL) and 1 < len(packs) < len(UNEQUAL)


def test_many_packs_do_not_store_their_activations(monkeypatch):
    monkeypatch.setattr(module, "PACK_TOKENS", {"cpu": 12, "cuda": 0})
    encoder, ids, contexts = small_text_encoder(), tokenize_names(UNEQUAL, 12), random_contexts(1, 8)
    stored = []
    for packs in (100, 0):
        monkeypatch.setattr(module, "STORED_PACKS", packs)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, n=sizes: n.append(x.numel()) or x, lambda x: x
        ):
            encoder(ids, contexts)
        stored.append(sum(sizes))
    assert stored[1] < stored[0] / 20


VISUAL = torch.rand(2, 32), torch.rand(2, 32, 3, 4)


class Counted:
    """A model in evaluation that counts the runs of its text encoder."""

    def __init__(self, mode: str = "post"):
        self.model, self.runs = prompted(mode).eval(), 0
        self.model.text_encoder.register_forward_hook(self._count)

    def _count(self, *_) -> None:
        self.runs += 1

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        return self.model(*VISUAL)


@pytest.mark.parametrize("mode, runs", [("post", 1), ("context", 1), ("template", 1), ("pre", 3)])
def test_precomputed_text_is_encoded_once(mode, runs):
    """With the same numbers, with and without the text encoder, and without a trace in the state dict."""
    counted, names = Counted(mode), prompted(mode).state_dict().keys()
    expected = counted()
    counted.runs = 0
    counted.model.precompute_(keep_encoder=True)
    for _ in range(3):
        counted.model.eval()  # a program may call it before every image
        assert torch.equal(counted(), expected)
    assert counted.runs == runs and counted.model.state_dict().keys() == names
    image = torch.rand(1, 32), torch.rand(1, 32, 3, 4)
    assert counted.model.embed(["a cow"], *image).shape == (1, 1, 32)  # other names are still read
    if mode != "pre":
        counted.model.precompute_()
        assert torch.equal(counted(), expected) and "text_embeddings" in counted.model.state_dict()


def test_precomputed_text_follows_weights_when_it_is_computed_again():
    counted = Counted()
    counted.model.precompute_(keep_encoder=True)
    before = counted()
    counted.model.load_state_dict(prompted().state_dict())
    counted.model.precompute_(keep_encoder=True)
    after = counted()
    assert not torch.equal(after, before)
    assert torch.equal(copy.deepcopy(counted.model)(*VISUAL), after)


@pytest.mark.parametrize("mode, runs", [("post", 1), ("template", 1), ("pre", 2)])
def test_evaluation_in_training_encodes_text_once_and_leaves_the_model_as_it_was(mode, runs):
    counted = Counted(mode)
    expected = counted()
    detector, counted.runs = nn.Sequential(counted.model).train(), 0
    with precomputed_text(detector):
        assert counted.model.training and counted.model.text_encoder.training
        detector.eval()
        assert torch.equal(counted(), expected) and torch.equal(counted(), expected)
    assert counted.runs == runs and counted.model.text_embeddings is None


def test_precomputed_text_can_be_used_everywhere():
    """After inference mode, for gradients, and on another device or in another precision."""
    model = prompted("context").eval()
    with torch.inference_mode():
        model.precompute_(keep_encoder=True)
    scale = torch.ones((), requires_grad=True)
    (model(*VISUAL) * scale).sum().backward()
    assert model.double()(*VISUAL).dtype == torch.double
    assert {tensor.device.type for tensor in model.to("meta").buffers()} == {"meta"}


@pytest.mark.parametrize("mode", ["post", "template"])
def test_training_encodes_text_every_time(mode):
    counted = Counted(mode)
    counted.model.precompute_(keep_encoder=True).train()
    counted.runs = 0
    for _ in range(2):
        counted.model(*VISUAL)
    assert counted.runs == 2


def test_a_traced_model_holds_its_weights():
    model = prompted("post").eval()
    with torch.no_grad():
        before = model(*VISUAL)
        traced = torch.jit.trace(model, VISUAL, check_trace=False)
        assert_close(traced(*VISUAL), before)
        traced.load_state_dict(prompted().state_dict(), strict=False)  # it stores every buffer
        assert not torch.equal(traced(*VISUAL), before)
