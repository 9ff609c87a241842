"""Small text encoders and tokenizers of Hugging Face, made here, in folders as the hub has them."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip
import pytest
from architectures import VIT

from denseclip_d2.shapes.dataset import SEMANTIC_CLASS_NAMES

transformers = pytest.importorskip("transformers", reason="the extra `hub` is not installed")

WORDS = ["red", "square", "dog", "traffic", "light", "hair", "drier", "a", "photo", "of", "."]
VOCABULARY = list(dict.fromkeys(WORDS + " ".join(SEMANTIC_CLASS_NAMES).split()))
PAD = {"roberta": 1, "m2m_100": 1}
BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": 80, "max_position_embeddings": 90,
}  # fmt: skip
# By kind: the config, open_clip's pooler and projection, and the tokens around the words.
TOWERS: dict[str, tuple[dict, str, str | None, str]] = {
    "roberta": (BERT, "mean_pooler", "mlp", "<s> $A </s>"),
    "bert": (BERT, "cls_pooler", "linear", "<s> $A </s>"),
    "xlm-roberta": ({**BERT, "hidden_size": 64}, "cls_last_hidden_state_pooler", None, "<s> $A </s>"),
    "mt5": (
        {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 80},
        "mean_pooler", "mlp", "$A </s>",
    ),
    "m2m_100": (
        {"d_model": 32, "encoder_layers": 2, "encoder_ffn_dim": 64, "encoder_attention_heads": 2,
         "decoder_layers": 1, "decoder_ffn_dim": 64, "decoder_attention_heads": 2, "vocab_size": 80,
         "max_position_embeddings": 90},
        "cls_pooler", "linear", "eng_Latn $A </s>",
    ),
}  # fmt: skip


def write_tokenizer(folder: Path, around: str, pad: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = {"<s>": 2, "<pad>": pad, "<unk>": 3, "</s>": 4, "eng_Latn": 5, "<mask>": 1 - pad}
    ids = {**special, **{word: 6 + i for i, word in enumerate(VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=around, special_tokens=list(special.items())
        )
    ends = {"eos_token": "</s>"} if around else {}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", **ends,
        additional_special_tokens=["<s>", "eng_Latn"],
    ).save_pretrained(folder)  # fmt: skip


_FOLDER = TemporaryDirectory()
ROOT = Path(_FOLDER.name)
(ROOT / "architectures").mkdir()


def add_architecture(name: str, vision: dict, text: dict, embed_dim: int = 64) -> None:
    config = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    (ROOT / "architectures" / f"{name}.json").write_text(json.dumps(config))


for _kind, (_config, _pooler, _proj, _around) in TOWERS.items():
    _folder = ROOT / _kind
    write_tokenizer(_folder, _around, PAD.get(_kind, 0))
    transformers.AutoConfig.for_model(_kind, pad_token_id=PAD.get(_kind, 0), **_config).save_pretrained(
        _folder
    )
    add_architecture(
        f"tiny-{_kind}", VIT,
        {"hf_model_name": str(_folder), "hf_tokenizer_name": str(_folder), "hf_pooler_type": _pooler,
         "hf_proj_type": _proj},
    )  # fmt: skip
open_clip.add_model_config(ROOT / "architectures")


def clip_of(kind: str) -> open_clip.CustomTextCLIP:
    return open_clip.create_model(f"tiny-{kind}", pretrained_text=False).eval()
