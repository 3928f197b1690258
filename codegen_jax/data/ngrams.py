"""Near-deduplication and decontamination: datatrove steps that compare documents by word n-grams."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.pipeline.dedup import minhash
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig, create_hash_func
from datatrove.utils.text import ngrams, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer

from codegen_jax.data.executors import Pass
from codegen_jax.data.shards import read_records
from codegen_jax.errors import UserError

PROMPT_FIELDS = ("prompt", "prompts", "canonical_solution", "text")  # fields of HumanEval, MTPB and MBPP


class CodeWords(WordTokenizer):
    """Splits at whitespace. By then datatrove has lowercased the text and replaced punctuation with spaces."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


WORDS: Any = CodeWords()
HASH = HashConfig(hash_fc="sha1")  # datatrove 0.10's default passes a str to xxhash, which xxhash 4 rejects


class QuietCluster(MinhashDedupCluster):
    """datatrove's step without its progress bar, which would be drawn over ours, and into logs."""

    def run(self, *arguments: Any, **keywords: Any) -> None:
        theirs, minhash.tqdm = minhash.tqdm, lambda files, desc: files
        try:
            super().run(*arguments, **keywords)
        finally:
            minhash.tqdm = theirs


def near_dedup(
    work: Path, documents: list[PipelineStep], shards: int, sizes: list[int] | None
) -> tuple[list[Pass], PipelineStep]:
    """MinHash with datatrove's defaults: 5-grams, 14 buckets of 8 hashes, similarity threshold about 0.72.

    Args:
        work: folder for signatures, pairs and clusters.
        documents: the steps that yield the documents.
        shards: number of shards, which is the number of tasks.
        sizes: bytes of each shard, if known.

    Returns:
        The passes that find near-duplicates, and the step that drops them from the same documents.
    """
    config = MinhashConfig(hash_config=HASH)
    signatures, pairs, clusters = (str(work / name) for name in ("signatures", "pairs", "clusters"))
    passes = [
        Pass(
            "signatures",
            "hashing n-grams",
            [*documents, MinhashDedupSignature(signatures, config, language=WORDS)],
            shards,
            sizes,
        ),
        Pass(
            "pairs",
            "finding near-duplicates",
            [MinhashDedupBuckets(signatures, pairs, config=config)],
            config.num_buckets,
        ),
        Pass("clusters", "clustering near-duplicates", [QuietCluster(pairs, clusters, config)], 1),
    ]
    return passes, MinhashDedupFilter(clusters)


def decontamination(work: Path, benchmarks: Sequence[str]) -> PipelineStep:
    """A step that drops documents sharing 12 consecutive words with a benchmark's prompts or solutions.

    Args:
        work: folder for the n-gram index; this function writes it.
        benchmarks: JSON lines files such as HumanEval's and MTPB's; their `PROMPT_FIELDS` are indexed.

    Raises:
        UserError: if a file can't be read or has none of the fields.
    """
    config = NGramsDecontConfig(hash_config=HASH)
    hashed: Any = create_hash_func(HASH)
    folder = work / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    for number, benchmark in enumerate(benchmarks):
        texts = [text for _, _, record in read_records(benchmark) for text in _prompts(record)]
        if not texts:
            raise UserError(f"{benchmark}: needs one of the fields {', '.join(PROMPT_FIELDS)} to decontaminate against")
        words = (WORDS.word_tokenize(simplify_text(text, config.norm_config)) for text in texts)
        hashes = sorted({hashed(" ".join(gram)) for text in words for gram in ngrams(text, config.n_grams)})
        np.array(hashes, HASH.np_descr).tofile(folder / f"{number}.index.hashes")
    return NGramsDecontFilter(str(folder), config, language=WORDS)


def _prompts(record: dict[str, Any] | str) -> list[str]:
    values = [record[field] for field in PROMPT_FIELDS if field in record] if isinstance(record, dict) else []
    return ["\n".join(value) if isinstance(value, list) else str(value) for value in values]
