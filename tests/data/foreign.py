"""Tokenizers that users may bring, trained with `tokenizers` and `sentencepiece` but with other settings than ours."""

import io
from collections.abc import Callable, Sequence

import tokenizers as hf
from sentencepiece import SentencePieceTrainer
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from codegen_jax.data.tokenizer import END_OF_TEXT, BpeTokenizer, SentencePieceTokenizer, Tokenizer

# the pattern of Llama 3 and GPT-4: a punctuation token includes the line ends after it
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bpe(
    texts: Sequence[str],
    pre_tokenizer: pre_tokenizers.PreTokenizer | None,
    normalizer: normalizers.Normalizer | None = None,
    whitespace_tokens: bool = False,
) -> BpeTokenizer:
    """A byte-level BPE with 600 ids and these pre-tokenization rules."""
    tokenizer = hf.Tokenizer(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizer or bytes_only
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BpeTokenizer(tokenizer.to_str(), whitespace_tokens)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_only])


def sentencepiece(texts: Sequence[str], **options) -> SentencePieceTokenizer:
    model = io.BytesIO()
    lines = (line for text in texts for line in text.splitlines())
    SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, minloglevel=2, **{"vocab_size": 600, **options}
    )
    return SentencePieceTokenizer(model.getvalue())


FOREIGN: dict[str, Callable[[Sequence[str]], Tokenizer]] = {
    "GPT-2's rules": lambda texts: bpe(texts, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "whitespace tokens": lambda texts: bpe(texts, pre_tokenizers.ByteLevel(add_prefix_space=False), None, True),
    "space prefix": lambda texts: bpe(texts, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "Llama 3's rules": lambda texts: bpe(texts, split(LLAMA_3)),
    "single digits": lambda texts: bpe(
        texts, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    ),
    "lines as words": lambda texts: bpe(texts, split(r"[^\n]*\n")),
    "no pre-tokenizer": lambda texts: bpe([text[:3000] for text in texts[:20]], None),
    "stripped ends": lambda texts: bpe(
        texts, pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Strip(True, True)
    ),
    "lowercase": lambda texts: bpe(texts, pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Lowercase()),
    "NFKC": lambda texts: bpe(texts, pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFKC()),
    "sentencepiece's defaults": sentencepiece,
    "Llama's sentencepiece": lambda texts: sentencepiece(
        texts,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
    ),
    "sentencepiece across words": lambda texts: sentencepiece(
        texts,
        model_type="bpe",
        byte_fallback=True,
        split_by_whitespace=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    ),
}
