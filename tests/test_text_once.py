"""Cheap text: prompts packed into one sequence, and embeddings computed once in evaluation."""

import copy
import io

import pytest
import torch
from test_language import NAMES, prompted, small_text_encoder
from torch.testing import assert_close

from denseclip_d2.language import text_encoder as module
from denseclip_d2.language.packing import pack_prompts
from denseclip_d2.language.prompts import tokenize_names

UNEQUAL = ["tv", "traffic light", "traffic cone", "a very long name of a class indeed", "dog"]


def random_contexts(batch: int, number: int) -> torch.Tensor:
    return torch.randn(batch, number, 32, requires_grad=True)


@pytest.mark.parametrize("max_tokens", [1, 20, 256])
@pytest.mark.parametrize("batch, num_contexts", [(1, 8), (3, 5), (1, 1)])
@pytest.mark.parametrize("names", [UNEQUAL, ["dog"], ["red dog", "red cat"]])
def test_packed_prompts_give_the_definition_and_its_gradient(
    monkeypatch, names, batch, num_contexts, max_tokens
):
    monkeypatch.setattr(module, "PACK_TOKENS", {"cpu": max_tokens, "cuda": 0})
    monkeypatch.setattr(module, "STORED_PACKS", 2)
    encoder, ids = small_text_encoder(), tokenize_names(names, 12)
    contexts = random_contexts(batch, num_contexts)
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
    (pack,) = pack_prompts(ids, 8, 256)
    # 9 of start and contexts; 2, 3, 2 ("traffic" is shared), 9 and 2 of names and their ends.
    assert len(pack.ids) == 9 + 2 + 3 + 2 + 9 + 2
    assert pack.positions[pack.ends].tolist() == [8 + end for end in ids.argmax(1).tolist()]
    assert (pack.mask == 0).sum(1).tolist() == (pack.positions + 1).tolist()
    (sentences,) = pack_prompts(tokenize_names(["a photo of a dog.", "a photo of a cat."]), 0, 256)
    assert len(sentences.ids) == 5 + 2 * 3


def test_packs_are_bounded_and_hold_every_prompt_in_order():
    ids = tokenize_names(UNEQUAL, 12)
    packs = pack_prompts(ids, 8, 16)
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
def test_evaluation_encodes_text_once(mode, runs):
    counted = Counted(mode)
    outputs = [counted() for _ in range(3)]
    assert counted.runs == runs
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert not [name for name in counted.model.state_dict() if "kept" in name]


def step(model):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(*VISUAL).sum().backward()
    optimizer.step()


def edit_through_data(model):
    model.train()
    model.contexts.data.add_(1)
    model.eval()


def narrow_and_widen(model):
    """Return to float32, possibly at the same address, with rounded values."""
    model.text_encoder.bfloat16()
    model.text_encoder.float()


CHANGES = {
    "weights loaded": lambda model: model.load_state_dict(prompted().state_dict()),
    "weights assigned": lambda model: model.load_state_dict(prompted().state_dict(), assign=True),
    "an optimizer's step": step,
    "contexts edited": lambda model: model.contexts.fill_(1),
    "contexts replaced": lambda model: setattr(model, "contexts", prompted().contexts),
    "other data": lambda model: setattr(model.contexts, "data", torch.ones_like(model.contexts)),
    "an edit through .data while training": edit_through_data,
    "one weight of the encoder": lambda model: model.text_encoder.ln_final.bias.fill_(1),
    "another encoder": lambda model: setattr(model, "text_encoder", small_text_encoder()),
    "other names": lambda model: model.set_class_names(["dog", "cat", "traffic cone"]),
    "other prompts": lambda model: setattr(model, "prompts", tokenize_names(["dog", "cat", "cow"])),
    "double precision there and back": lambda model: model.double() and model.bfloat16().float(),
    "the encoder narrowed and widened": narrow_and_widen,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_kept_text_is_dropped_with(change):
    counted = Counted()
    before = counted()
    with torch.no_grad() if change is not step else torch.enable_grad():
        change(counted.model)
    after = counted()
    assert not torch.equal(after, before)
    fresh = copy.deepcopy(counted.model)
    with torch.no_grad():
        assert torch.equal(after, fresh(*VISUAL))
        fresh._kept.forget()
        assert torch.equal(after, fresh(*VISUAL))


def test_kept_text_is_dropped_by_a_change_of_mode_precision_or_device():
    counted = Counted()
    for i, change in enumerate(
        (lambda m: m.train().eval(), lambda m: m.double().float(), lambda m: m.cpu()), 2
    ):
        counted()
        change(counted.model)
        counted()
        assert counted.runs == i
    with torch.autocast("cpu", torch.bfloat16):
        narrow = counted()
    assert counted.runs == 5
    wide = counted()
    assert counted.runs == 6 and not torch.equal(narrow, wide)
    assert counted.model.to("meta")._kept._kept is None


def test_gradients_flow_in_evaluation_and_after_inference_mode():
    model = prompted("context").eval()
    with torch.inference_mode():
        model(*VISUAL)
    with torch.no_grad():
        kept = model(*VISUAL)
    assert not kept.is_inference()
    scale = torch.ones((), requires_grad=True)
    (kept * scale).sum().backward()  # the stored embeddings can be saved for a backward pass
    model(*VISUAL).sum().backward()
    assert torch.count_nonzero(model.contexts.grad)


@pytest.mark.parametrize("mode, runs", [("post", 2), ("template", 1)])
def test_training_encodes_what_it_learns_every_time(mode, runs):
    counted = Counted(mode)
    counted.model.train()
    for _ in range(2):
        counted.model(*VISUAL)
    assert counted.runs == runs


def test_what_callers_do_to_kept_text_does_not_stay():
    model = prompted("context").eval()
    with torch.no_grad():
        before = model(*VISUAL).clone()
        model(*VISUAL).zero_()
        assert torch.equal(model(*VISUAL), before)


def test_copies_and_pickles_leave_kept_text_behind():
    counted = Counted()
    before, model = counted(), counted.model
    model.text_encoder._forward_hooks.clear()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert copied._kept._kept is None
        with torch.no_grad():
            assert torch.equal(copied(*VISUAL), before)
            copied.contexts.zero_()
            assert not torch.equal(copied(*VISUAL), before)
            assert torch.equal(model(*VISUAL), before)


def test_a_traced_model_holds_its_weights_and_no_kept_text():
    model = prompted("post").eval()
    with torch.no_grad():
        before = model(*VISUAL)
        traced = torch.jit.trace(model, VISUAL, check_trace=False)
        assert_close(traced(*VISUAL), before)
        traced.load_state_dict(prompted().state_dict(), strict=False)  # it stores every buffer
        assert not torch.equal(traced(*VISUAL), before)


@pytest.mark.parametrize(
    "names, message",
    [(["dog", "cat"], "2 class names.*3 classes"), (["dog", "Dog", "cat"], "more than once")],
)
def test_new_class_names_are_checked(names, message):
    model = prompted()
    with pytest.raises(ValueError, match=message):
        model.set_class_names(names)
    assert model.class_names == tuple(NAMES)


def test_folded_names_cannot_be_changed():
    with pytest.raises(ValueError, match="before it is folded"):
        prompted().fold_().set_class_names(["dog", "cat", "cow"])
