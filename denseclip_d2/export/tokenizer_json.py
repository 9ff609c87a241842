import json

from open_clip.tokenizer import SimpleTokenizer


def tokenizer_json() -> str:
    """Return CLIP's tokenizer as a ``tokenizer.json``, the format of Hugging Face's tokenizers (JSON).

    Its token ids are those of open_clip, with start and end token, padded with 0. Open_clip also repairs
    broken characters and HTML entities; this tokenizer reads them as they are.
    """
    clip = SimpleTokenizer()
    start, end = clip.decoder[clip.sot_token_id], clip.decoder[clip.eot_token_id]
    special = {
        token: {"id": token, "ids": [clip.encoder[token]], "tokens": [token]} for token in (start, end)
    }
    first, last = ({"SpecialToken": {"id": token, "type_id": 0}} for token in (start, end))
    sequence = [first, {"Sequence": {"id": "A", "type_id": 0}}, last]
    # Special tokens that a name spells are read as plain words, for they are no "added_tokens".
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    split = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": True}
    in_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    return json.dumps({
        "version": "1.0",
        "truncation": None,
        "padding": {**padding, "pad_id": 0, "pad_type_id": 0, "pad_token": clip.decoder[0]},
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, spaces, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, in_bytes]},
        "post_processor": {
            "type": "TemplateProcessing", "single": sequence, "pair": sequence, "special_tokens": special,
        },
        "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": clip.encoder, "merges": [list(pair) for pair in clip.bpe_ranks],
        },
    })  # fmt: skip
