"""Eight simulated CPU devices, unless JAX_PLATFORMS selects others, and small data shared by all tests."""

import json
import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# optimizing a test's program takes longer than running it; scripts/test_slow compiles as users do
if os.environ["JAX_PLATFORMS"] == "cpu" and "optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if version("jax").startswith("0.10."):  # XLA aborts on unknown flags, and later versions lack this one
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# on CPUs each XLA collective blocks a pool thread, and eight devices with two collectives each used up all 8 threads
# (not for processes that tests start: more threads make an abort at interpreter exit more likely)
os.environ.setdefault("PJRT_NPROC", "32")
# many tests, and the processes they start, compile the same few programs
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache/xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["HF_HUB_OFFLINE"] = "1"  # otherwise each id that tests invent is requested from the hub repeatedly

import fsspec
import pytest

from codegen_jax.data.prepare import prepare
from codegen_jax.data.shards import Skipped, read_documents
from codegen_jax.data.tokenizer import SentencePieceTokenizer
from codegen_jax.data.train_tokenizer import train_sentencepiece


def write_shard(path: Path, texts: list[str]) -> str:
    """Write a Pile-format shard, compressed according to its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with fsspec.open(str(path), "wt", compression="infer", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text, "meta": {"pile_set_name": "test"}}) + "\n")
    return str(path)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """74 files from an old version of this package: real code that does not change with ours."""
    return [text for text, *_ in read_documents(str(Path(__file__).parent / "data/corpus.jsonl.zst"), Skipped())]


@pytest.fixture(scope="session")
def tokenizer(texts) -> SentencePieceTokenizer:
    return train_sentencepiece(texts, vocab_size=512)


@pytest.fixture(scope="session")
def token_folder(tmp_path_factory, texts, tokenizer) -> Path:
    """Token files of these texts, from two shards; read-only."""
    root = tmp_path_factory.mktemp("tokens")
    shards = [write_shard(root / f"{i}.jsonl.zst", texts[i::2]) for i in range(2)]
    prepare(shards, str(root / "tokens"), tokenizer)
    return root / "tokens"
