"""Text encoders of Hugging Face's transformers."""

import open_clip
import pytest
import torch
from architectures import CONFIG, options
from hub_towers import ROOT, TOWERS, clip_of, transformers

from denseclip_d2.builder import build_model_with_weights
from denseclip_d2.clip_models import get_clip_architecture
from denseclip_d2.config import load_config
from denseclip_d2.engine import Trainer
from denseclip_d2.language import HubTextEncoder, PromptedTextEncoder, build_text_encoder
from denseclip_d2.language.sentences import SentenceReader
from denseclip_d2.language.tokenizers import get_tokenizer

NAMES = ["red square", "dog", "traffic light", "hair drier of a dog"]
NOTHING = torch.zeros(1, 64), torch.zeros(1, 64, 1, 1)

# Millions of parameters, as docs/model_profile.csv of open_clip and the README of TIPSv2 have them.
PUBLISHED = {
    "roberta-ViT-B-32": 124.87, "xlm-roberta-base-ViT-B-32": 278.27, "xlm-roberta-large-ViT-H-14": 560.94,
    "mt5-base-ViT-B-32": 277.86, "mt5-xl-ViT-H-14": 1674.68, "nllb-clip-base": 414.04,
    "nllb-clip-large": 767.14, "coca_roberta-ViT-B-32": 124.45, "TIPSv2-B-14": 109.6, "TIPSv2-L-14": 183.9,
    "TIPSv2-SO400M-14": 448.3, "TIPSv2-g-14": 389.1,
}  # fmt: skip


def language_of(
    kind: str, encoder: HubTextEncoder | None = None, *, reading: dict | None = None, **kwargs
) -> PromptedTextEncoder:
    architecture = get_clip_architecture(f"tiny-{kind}")
    tokenizer = get_tokenizer(architecture)
    encoder = encoder or build_text_encoder(architecture, tokenizer)
    sentences = SentenceReader(tokenizer, **(reading or {}))
    return PromptedTextEncoder(class_names=NAMES, text_encoder=encoder, sentences=sentences, **kwargs)


@pytest.mark.parametrize("kind", TOWERS)
def test_sentences_are_embedded_as_open_clip_does(kind):
    model = clip_of(kind)
    language = language_of(kind, reading={"templates": ["a photo of a {}"]}, mode="template")
    language.text_encoder.load_state_dict(model.text.state_dict())
    ids = open_clip.get_tokenizer(f"tiny-{kind}")([f"a photo of a {name}" for name in NAMES])
    with torch.no_grad():
        torch.testing.assert_close(language(*NOTHING)[0], model.encode_text(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", TOWERS)
def test_contexts_stand_between_start_token_and_name(kind):
    encoder = language_of(kind, mode="template").text_encoder
    tokenizer = get_tokenizer(get_clip_architecture(f"tiny-{kind}"))
    rows, contexts = tokenizer.encode(NAMES), torch.randn(2, 3, encoder.width, requires_grad=True)
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=tokenizer.pad_id
    )
    start, expected = tokenizer.start, []
    for context in contexts:
        for row in rows:
            words = encoder.token_embedding(torch.tensor(row))
            prompt = torch.cat([words[:start], context, words[start:]])[None]
            alone = torch.ones(prompt.shape[:2])
            states = encoder.transformer(inputs_embeds=prompt, attention_mask=alone)
            expected.append(encoder.proj(encoder.pooler(states, alone))[0])
    found = encoder(padded, contexts)
    torch.testing.assert_close(found.flatten(0, 1), torch.stack(expected), rtol=1e-5, atol=1e-5)
    found[..., 0].sum().backward()
    assert contexts.grad.any() and not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("kind", ["roberta", "mt5"])
def test_contexts_that_are_words_are_read_as_words(kind):
    learned = language_of(kind, reading={"n_ctx": 2}, mode="context", context_init="photo of")
    photo_of = {"templates": ["photo of {}"]}
    fixed = language_of(kind, learned.text_encoder, reading=photo_of, mode="template")
    torch.testing.assert_close(learned(*NOTHING), fixed(*NOTHING), rtol=1e-5, atol=1e-5)


def test_a_frozen_encoder_has_no_dropout_in_training():
    language = language_of("m2m_100", mode="template").train()
    assert torch.equal(language(*NOTHING), language(*NOTHING))


def test_many_names_are_encoded_in_parts():
    encoder = language_of("roberta", mode="template").text_encoder
    ids, contexts = torch.randint(6, 16, (300, 5)), torch.randn(1, 2, encoder.width, requires_grad=True)
    whole = encoder._encode(ids, contexts)
    torch.testing.assert_close(encoder(ids, contexts), whole)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shapes_are_those_that_were_published(name):
    with torch.device("meta"):
        encoder = HubTextEncoder.from_architecture(get_clip_architecture(name))
    millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    assert millions == pytest.approx(PUBLISHED[name], abs=0.06 if name.startswith("TIPS") else 0.006)


def test_a_model_begins_from_open_clips_weights(tmp_path):
    model = clip_of("roberta")
    weights = model.state_dict() | {
        "text.transformer.embeddings.position_ids": torch.arange(90)[None],  # of older transformers
        "text_decoder.ln_final.weight": torch.ones(4),  # CoCa's
    }
    torch.save(weights, tmp_path / "clip.pt")
    folder = {"MODEL.DENSECLIP.PROMPT.TOKENIZER": ROOT / "roberta"}
    cfg = load_config(CONFIG, options("roberta", str(tmp_path / "clip.pt"), tmp_path, **folder))
    cfg.MODEL.DENSECLIP.CLASS_NAMES = NAMES
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(NAMES)
    loaded = build_model_with_weights(cfg, for_training=True).backbone.language.text_encoder
    assert isinstance(loaded, HubTextEncoder)
    for name, tensor in model.text.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_contexts_of_such_an_encoder_are_trained(semantic_shapes, tmp_path):
    torch.save(clip_of("m2m_100").state_dict(), tmp_path / "clip.pt")
    cfg = load_config(CONFIG, options("m2m_100", str(tmp_path / "clip.pt"), tmp_path / "output"))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    language = trainer.model.backbone.language
    before = language.contexts.detach().clone()
    trainer.train()
    assert not torch.equal(language.contexts, before)
    assert all(p.grad is None for p in language.text_encoder.parameters())


def test_a_tokenizer_comes_from_a_folder_or_the_error_says_where_to_put_it(tmp_path):
    siglip = get_clip_architecture("ViT-B-16-SigLIP")
    assert get_tokenizer(siglip, str(ROOT / "mt5")).encode(["dog"]) == [[8, 4]]
    with pytest.raises(FileNotFoundError, match="PROMPT.TOKENIZER = '.*nowhere': there is no such folder"):
        get_tokenizer(siglip, str(tmp_path / "nowhere"))
    with pytest.raises(
        FileNotFoundError, match="is not in MODEL.*PROMPT.TOKENIZER = .*tokenizer.json"
    ) as error:
        get_tokenizer(siglip, str(tmp_path))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="has CLIP's own. Set it to ''"):
        get_tokenizer(get_clip_architecture("RN50"), str(tmp_path))


def test_without_shapes_or_transformers_the_error_says_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(
        FileNotFoundError, match="'tiny-mt5' has the text encoder .* whose config.json is nei"
    ):
        build_text_encoder(get_clip_architecture("tiny-mt5"))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match="'nllb-clip-base' has the text encoder .*pip install transformers"):
        build_text_encoder(get_clip_architecture("nllb-clip-base"))
