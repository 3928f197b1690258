"""Export our tokenizers as files for transformers' AutoTokenizer: versions 4 and 5, fast and slow."""

import json
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from codegen_jax.data.infill import TOKENS as INFILL_TOKENS
from codegen_jax.data.probe import CODE, RARE
from codegen_jax.data.tokenizer import BpeTokenizer, SentencePieceTokenizer, Tokenizer
from codegen_jax.data.tokenizer_metadata import CONFIG, VOCABULARY, parse

log = logging.getLogger(__name__)

# By default transformers 4 returns token_type_ids, and its CodeGen adds their embeddings to those of the tokens.
INPUTS = {"model_input_names": ["input_ids", "attention_mask"]}


def tokenizer_files(tokenizer: Tokenizer, n_positions: int) -> dict[str, bytes]:
    """The tokenizer files, contents by name: tokenizer.json, tokenizer_config.json and, for CodeGen's slow tokenizer,
    vocab.json and merges.txt.

    They encode like our tokenizer, except that transformers always encodes the text <|endoftext|> as the special token,
    even with sentencepiece. If a sentencepiece model cannot be converted to an exact tokenizer.json, a warning is
    logged, and it is written under a name that transformers does not read. If the tokenizer comes with its own
    tokenizer_config.json, its files are kept, apart from changes that transformers 4 or 5 needs.
    """
    if CONFIG in tokenizer.metadata:
        if isinstance(tokenizer, SentencePieceTokenizer):
            log.warning(
                "tokenizer: the sentencepiece model is copied with its tokenizer_config.json; whether transformers' "
                f"{parse(tokenizer.metadata, CONFIG).get('tokenizer_class')} encodes like ours is not checked"
            )
        return tokenizer.files() | {CONFIG: _for_all_versions(tokenizer.metadata)}
    files = _exported(tokenizer, n_positions)
    roles = parse(tokenizer.metadata, "special_tokens_map.json")
    if CONFIG in files and roles:
        files[CONFIG] = _json(json.loads(files[CONFIG]) | roles)
    return {name: content for name, content in tokenizer.metadata.items() if name not in VOCABULARY} | files


def _exported(tokenizer: Tokenizer, n_positions: int) -> dict[str, bytes]:
    """The files of a tokenizer without a tokenizer_config.json of its own."""
    if isinstance(tokenizer, BpeTokenizer):
        return _bpe_files(tokenizer, n_positions)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    converted = _from_sentencepiece(tokenizer)
    difference = _difference(tokenizer, converted)
    if difference:
        log.warning(
            "tokenizer: this sentencepiece model cannot be converted exactly to a tokenizer.json for transformers: "
            f"{difference}; it is written as sentencepiece.model instead, for the sentencepiece library"
        )
        return {"sentencepiece.model": tokenizer.files()["tokenizer.model"]}
    return {"tokenizer.json": converted, CONFIG: _config(converted, tokenizer.eos_id, n_positions)}


def _for_all_versions(metadata: Mapping[str, bytes]) -> bytes:
    """The source's tokenizer_config.json, adapted to transformers 4 and 5.

    model_input_names is added if it is missing (except for CodeGenTokenizer), and a class unknown to
    transformers 4 is replaced by its older name.
    """
    config = parse(metadata, CONFIG)
    needed = {} if str(config.get("tokenizer_class")).startswith("CodeGenTokenizer") else INPUTS | config
    if config.get("tokenizer_class") == "TokenizersBackend":
        needed["tokenizer_class"] = "PreTrainedTokenizerFast"
    return metadata[CONFIG] if config == config | needed else _json(config | needed)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _config(tokenizer_json: bytes, eos_id: int, n_positions: int, **more: Any) -> bytes:
    """The tokenizer_config.json for a tokenizer.json; fields in `more` override the defaults."""
    from tokenizers import Tokenizer as FastTokenizer

    eos = None if eos_id < 0 else FastTokenizer.from_str(tokenizer_json.decode()).id_to_token(eos_id)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), eos),
        "padding_side": "left",  # generation continues from the right end
        **INPUTS,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_positions,
    }
    return _json(config | more)


def _bpe_files(tokenizer: BpeTokenizer, n_positions: int) -> dict[str, bytes]:
    written = tokenizer.to_json()
    pre_tokenizer, post_processor = written["pre_tokenizer"] or {}, written["post_processor"] or {}
    if post_processor.get("type") != "ByteLevel":
        written["post_processor"] = None  # it adds tokens, and our encoding adds none
    tokenizer_json = json.dumps(written, ensure_ascii=False).encode()
    config = partial(_config, tokenizer_json, tokenizer.eos_id, n_positions)
    if not _has_codegen_rules(written):
        add_prefix_space = pre_tokenizer.get("add_prefix_space", False)
        return {"tokenizer.json": tokenizer_json, CONFIG: config(add_prefix_space=add_prefix_space)}
    added = {token.pop("id"): token for token in written["added_tokens"]}
    merges = "".join(f"{left} {right}\n" for left, right in written["model"]["merges"])
    return {
        "tokenizer.json": tokenizer_json,
        "vocab.json": json.dumps(written["model"]["vocab"], ensure_ascii=False).encode(),
        "merges.txt": f"#version: 0.2\n{merges}".encode(),
        CONFIG: config(tokenizer_class="CodeGenTokenizer", added_tokens_decoder=added),
    }


def _has_codegen_rules(written: dict[str, Any]) -> bool:
    """Whether a tokenizer.json has exactly the rules that are built into transformers' CodeGenTokenizer."""
    from tokenizers import pre_tokenizers

    model, pre_tokenizer, decoder = written["model"], written["pre_tokenizer"] or {}, written["decoder"] or {}
    options = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    return (
        model["type"] == "BPE"
        and not any(model.get(option) for option in options)
        and set(pre_tokenizers.ByteLevel.alphabet()) <= model["vocab"].keys()
        and written["normalizer"] is None
        and (pre_tokenizer.get("type"), decoder.get("type")) == ("ByteLevel", "ByteLevel")
        and pre_tokenizer["use_regex"]
        and not pre_tokenizer["add_prefix_space"]
        and not any(token[flag] for token in written["added_tokens"] for flag in ("lstrip", "rstrip", "single_word"))
    )


def _from_sentencepiece(tokenizer: SentencePieceTokenizer) -> bytes:
    """Convert a sentencepiece BPE model to a tokenizer.json.

    Spaces remain spaces here, so a literal U+2581 is not a piece and is encoded as bytes if there is byte fallback, as
    in our own tokenizer.
    """
    from tokenizers import AddedToken, Regex, decoders, normalizers
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers.models import BPE

    space = SentencePieceTokenizer.SPACE
    # pieces with literal spaces never match in sentencepiece, since it replaces spaces in the text
    swapped = lambda piece: piece.translate(str.maketrans({space: " ", " ": space}))
    proto, pieces = tokenizer.proto, [swapped(piece) for piece in tokenizer.pieces]
    kinds, merges = proto.SentencePiece, [(swapped(left), swapped(right)) for left, right in tokenizer.merges]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    unknown = next(piece for piece, entry in zip(pieces, proto.pieces) if entry.type == kinds.UNKNOWN)
    has_bytes = proto.trainer_spec.byte_fallback
    fast = FastTokenizer(BPE(vocab, merges, unk_token=unknown, fuse_unk=not has_bytes, byte_fallback=has_bytes))
    before = [] if has_bytes else [normalizers.Replace(space, " ")]
    after = [decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:  # our tokenizer also adds this prefix after each U+2581
        before.append(normalizers.Replace(Regex(f"(?<![^{space}])(?=[^{space}])"), " "))
        after.append(decoders.Strip(" ", 1, 0))
    fast.normalizer, fast.decoder = normalizers.Sequence(before), decoders.Sequence(after)
    symbols = [piece for piece, entry in zip(pieces, proto.pieces) if entry.type == kinds.USER_DEFINED]
    fast.add_tokens([AddedToken(symbol, normalized=False) for symbol in symbols if space not in symbol])
    special = [pieces[tokenizer.eos_id]] if tokenizer.eos_id >= 0 else []
    special += [token for token in INFILL_TOKENS if token in vocab]
    fast.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return fast.to_str().encode()


def _difference(tokenizer: SentencePieceTokenizer, converted: bytes) -> str | None:
    """Describe the shortest test text that the tokenizer.json encodes or decodes differently; None if it is exact.

    Texts that contain unknown tokens may decode differently.
    """
    from tokenizers import Tokenizer as FastTokenizer

    fast: Any = FastTokenizer.from_str(converted.decode())
    fast.encode_special_tokens = True
    unknown = fast.token_to_id(fast.model.unk_token)
    pieces = [tokenizer.decode([id]) for id in range(tokenizer.vocab_size)]
    texts = sorted((*CODE, *RARE, *pieces), key=len)
    ours = tokenizer.encode_batch(texts, special_tokens=False)
    theirs = [e.ids for e in fast.encode_batch_fast(texts, add_special_tokens=False)]
    for text, ids, others in zip(texts, ours, theirs):
        if ids != others:
            return f"{text!r} would become {others} instead of {ids}"
        back = fast.decode(ids, skip_special_tokens=False)
        if unknown not in ids and back != tokenizer.decode(ids):
            return f"{text!r} would be decoded as {back!r}"
    return None
