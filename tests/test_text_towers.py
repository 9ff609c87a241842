"""Text encoders and tokenizers of all CLIP families."""

import sys

import open_clip
import pytest
import torch
from architectures import clip_of
from open_clip.tokenizer import HFTokenizer

from denseclip_d2.clip_models import get_clip_architecture
from denseclip_d2.language import CLIPTextEncoder, PromptedTextEncoder
from denseclip_d2.language.sentences import SentenceReader
from denseclip_d2.language.tokenizers import HubTokenizer, get_tokenizer


@pytest.mark.parametrize(
    "family", ["CLIPA", "layer-scale", "worldwide", "Sigmoid", "Sigmoid-i18n", "MobileCLIP"]
)
def test_sentences_are_embedded_as_open_clip_does(family):
    names = ["red square", "dog", "traffic light", "hair drier"]
    model, architecture = clip_of(family), get_clip_architecture(f"tiny-{family}")
    encoder = CLIPTextEncoder.from_architecture(architecture)
    weights = model.text.state_dict() if hasattr(model, "text") else model.state_dict()
    encoder.load_state_dict(weights, strict=hasattr(model, "text"))
    language = PromptedTextEncoder(
        class_names=names,
        text_encoder=encoder,
        mode="template",
        sentences=SentenceReader(templates=["a {}"]),
    ).eval()
    ids = open_clip.get_tokenizer(f"tiny-{family}")([f"a {name}" for name in names])
    with torch.no_grad():
        embeddings, expected = language(torch.zeros(1, 64), torch.zeros(1, 64, 1, 1)), model.encode_text(ids)
    torch.testing.assert_close(embeddings[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["Sigmoid", "worldwide"])
def test_contexts_that_are_words_are_read_as_words(family):
    architecture = get_clip_architecture(f"tiny-{family}")
    encoder = CLIPTextEncoder.from_architecture(architecture)
    names = ["red square", "dog"]
    learned = PromptedTextEncoder(
        class_names=names,
        text_encoder=encoder,
        sentences=SentenceReader(n_ctx=1),
        mode="context",
        context_init="a",
    )
    fixed = PromptedTextEncoder(
        class_names=names,
        text_encoder=encoder,
        mode="template",
        sentences=SentenceReader(templates=["a {}"]),
    )
    nothing = torch.zeros(1, 64), torch.zeros(1, 64, 1, 1)
    torch.testing.assert_close(learned(*nothing), fixed(*nothing), rtol=1e-4, atol=1e-5)
    learned(*nothing).sum().backward()
    assert learned.contexts.grad.any() and not any(p.requires_grad for p in encoder.parameters())


def test_where_padding_is_read_names_are_encoded_in_parts():
    encoder = CLIPTextEncoder.from_architecture(get_clip_architecture("tiny-Sigmoid"))
    ids = torch.randint(1, 1000, (90, 5))  # 32 positions each, so that there are more parts than are stored
    contexts = torch.randn(1, 4, 64, requires_grad=True)
    torch.testing.assert_close(encoder(ids, contexts), encoder.encode_unpacked(ids, contexts))


def test_a_tokenizer_of_a_hub_fails_clearly_without_it(monkeypatch):
    siglip = get_clip_architecture("ViT-B-16-SigLIP")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="tokenizer 'timm/ViT-B-16-SigLIP'.* pip install transformers"):
        get_tokenizer(siglip)

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "get_tokenizer", offline)
    with pytest.raises(
        FileNotFoundError, match="could not be downloaded .no route.*get_tokenizer\\('ViT-B-16-SigLIP'"
    ):
        get_tokenizer(siglip)


class FromAHub:
    """The interface of transformers' tokenizers with a start token and without."""

    eos_token_id, sep_token_id, pad_token_id, all_special_ids = 1, 102, 1, [1, 2, 101, 102]

    def __init__(self, start: list[int]):
        self.first = start

    def __call__(self, texts):
        ids = [
            [*self.first, *(10 + len(word) for word in text.split()), 102 if self.first else 1]
            for text in texts
        ]
        return type("Encoding", (), {"input_ids": ids})


@pytest.mark.parametrize("start, expected", [([], [13, 15, 1]), ([101], [101, 13, 15, 0])])
def test_a_tokenizer_of_a_hub_is_taken_as_it_is(start, expected):
    hub = HFTokenizer.__new__(HFTokenizer)
    hub.tokenizer, hub.strip_sep_token, hub.clean_fn = FromAHub(start), bool(start), str.strip
    tokenizer = HubTokenizer(hub)
    assert (tokenizer.start, tokenizer.pad_id) == (len(start), 1)
    assert tokenizer.encode([" red fence"]) == [expected]
