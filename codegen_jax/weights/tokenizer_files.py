"""Our tokenizers as the files that transformers' AutoTokenizer reads."""

import json
from collections.abc import Mapping
from typing import Any

from codegen_jax.data.tokenizer import END_OF_TEXT, SentencePieceTokenizer, Tokenizer
from codegen_jax.data.tokenizer_metadata import parse

CONFIG = "tokenizer_config.json"
INPUTS = ["input_ids", "attention_mask"]


def tokenizer_files(tokenizer: Tokenizer, n_positions: int) -> dict[str, bytes]:
    """Content by file name: tokenizer.json and tokenizer_config.json.

    They encode as ours do, but for one habit of transformers: the text of the special token <|endoftext|> becomes its
    id. A sentencepiece tokenizer's U+2581, which ours keeps as bytes, comes back as a space. Those of a Hugging Face
    folder are that folder's.
    """
    if CONFIG in tokenizer.metadata:
        return tokenizer.files() | {CONFIG: _without_token_types(tokenizer.metadata)}
    is_sentencepiece = isinstance(tokenizer, SentencePieceTokenizer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast" if is_sentencepiece else "CodeGenTokenizer",
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_positions,
    }
    model = _from_sentencepiece(tokenizer) if is_sentencepiece else tokenizer.files()["tokenizer.json"]
    return {"tokenizer.json": model, CONFIG: (json.dumps(config, indent=2) + "\n").encode()}


def _without_token_types(metadata: Mapping[str, bytes]) -> bytes:
    """The source's file; where it leaves open what the tokenizer returns, it says so, since transformers 4 would give
    token_type_ids, too, which CodeGen adds to the embedding."""
    config = parse(metadata, CONFIG)
    if config.get("tokenizer_class", "").startswith("CodeGenTokenizer") or "model_input_names" in config:
        return metadata[CONFIG]
    return (json.dumps(config | {"model_input_names": INPUTS}, indent=2, ensure_ascii=False) + "\n").encode()


def _from_sentencepiece(tokenizer: SentencePieceTokenizer) -> bytes:
    """A sentencepiece BPE as a tokenizer.json: its merges are all splits of a piece into two, likeliest piece first."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, decoders, normalizers
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers.models import BPE

    content = tokenizer.files()["tokenizer.model"]
    processor: Any = SentencePieceProcessor(model_proto=content)
    pieces = tokenizer.pieces
    vocab = {piece: id for id, piece in enumerate(pieces)}
    fast = FastTokenizer(BPE(vocab, tokenizer.merges, unk_token=pieces[processor.unk_id()], byte_fallback=True))
    space = SentencePieceTokenizer.SPACE
    fast.normalizer = normalizers.Replace(" ", space)
    fast.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_tokens([AddedToken("\n", normalized=False)])
    fast.add_special_tokens([AddedToken(pieces[tokenizer.eos_id], normalized=False)])
    return fast.to_str().encode()
