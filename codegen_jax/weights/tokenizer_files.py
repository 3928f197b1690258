"""Our tokenizers as the files that transformers' AutoTokenizer reads."""

import json
from typing import Any

from codegen_jax.data.tokenizer import END_OF_TEXT, SentencePieceTokenizer, Tokenizer


def tokenizer_files(tokenizer: Tokenizer, n_positions: int) -> dict[str, bytes]:
    """Content by file name: tokenizer.json and tokenizer_config.json.

    They encode as ours do, but for one habit of transformers: the text of the special token <|endoftext|> becomes its
    id. A sentencepiece tokenizer's U+2581, which ours keeps as bytes, comes back as a space.
    """
    is_sentencepiece = isinstance(tokenizer, SentencePieceTokenizer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast" if is_sentencepiece else "CodeGenTokenizer",
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_positions,
    }
    model = _from_sentencepiece(tokenizer) if is_sentencepiece else tokenizer.files()["tokenizer.json"]
    return {"tokenizer.json": model, "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode()}


def _from_sentencepiece(tokenizer: SentencePieceTokenizer) -> bytes:
    """A sentencepiece BPE as a tokenizer.json: its merges are all splits of a piece into two, likeliest piece first."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, decoders, normalizers
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers.models import BPE

    (content,) = tokenizer.files().values()
    processor: Any = SentencePieceProcessor(model_proto=content)
    pieces = [processor.id_to_piece(id) for id in range(processor.vocab_size())]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    merges: list[tuple[float, int, int, tuple[str, str]]] = []
    for id, piece in enumerate(pieces):
        if processor.is_control(id) or processor.is_unknown(id) or processor.is_byte(id):
            continue
        for left, right in ((piece[:cut], piece[cut:]) for cut in range(1, len(piece))):
            if left in vocab and right in vocab:
                merges.append((-processor.get_score(id), vocab[left], vocab[right], (left, right)))
    ranked = [pair for *_, pair in sorted(merges)]
    fast = FastTokenizer(BPE(vocab, ranked, unk_token=pieces[processor.unk_id()], byte_fallback=True))
    space = SentencePieceTokenizer.SPACE
    fast.normalizer = normalizers.Replace(" ", space)
    fast.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_tokens([AddedToken("\n", normalized=False)])
    fast.add_special_tokens([AddedToken(pieces[tokenizer.eos_id], normalized=False)])
    return fast.to_str().encode()
