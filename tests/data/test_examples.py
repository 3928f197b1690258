"""Examples have the ids and masks that a plain reading of the rules gives; long ones are cut or dropped, and listed."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_jax.config import DataConfig, MeshConfig, SourceConfig
from codegen_jax.data.batches import Batches
from codegen_jax.data.chat_template import DEFAULT
from codegen_jax.data.examples import fit
from codegen_jax.data.packing import Examples
from codegen_jax.data.prepare import prepare
from codegen_jax.data.prepare_report import load_report, table
from codegen_jax.data.rows import ids_of, targets_of
from codegen_jax.data.show import show
from codegen_jax.data.sources import make_order, open_sources
from codegen_jax.data.tokenizer import load_tokenizer
from codegen_jax.data.tokens import TokenFiles
from codegen_jax.errors import UserError
from codegen_jax.sharding import make_mesh
from codegen_jax.training.step import batch_sharding
from tests.data.foreign import FOREIGN
from tests.runs import devices, tiny_run


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def examples(folder):
    """(ids, trained ids or -1) of each example, sorted."""
    files = TokenFiles(folder)
    rows = Examples(files, 1000, packed=False)
    used = [row[row != -1] for row in (rows[number] for number in range(len(rows)))]
    return sorted((ids_of(row).tolist(), targets_of(row).tolist()) for row in used)


PAIRS = [("def f(x):\n", "    return x\n"), ("", "alone"), ("a <|endoftext|> ", "<|endoftext|> b")]


@pytest.mark.parametrize("loss", ["completions", "all"])
def test_completions_and_their_eos_are_trained_prompts_only_if_asked(tmp_path, tokenizer, loss):
    shard = write(tmp_path / "0.jsonl", [{"prompt": prompt, "completion": answer} for prompt, answer in PAIRS])
    manifest = prepare([shard], str(tmp_path / "out"), tokenizer, format="pairs", loss=loss)
    expected, trained, nbytes = [], 0, 0
    for prompt, answer in PAIRS:
        before, after = (tokenizer.encode_batch([text], special_tokens=False)[0] for text in (prompt, answer))
        ids = [*before, *after, tokenizer.eos_id]
        first = max(1, 0 if loss == "all" else len(before))  # nothing comes before the first token
        expected.append((ids, [-1] * first + ids[first:]))
        trained += len(ids) - first
        nbytes += len(tokenizer.decode(ids[first:-1]).encode())
    assert examples(tmp_path / "out") == sorted(expected)
    assert (manifest.trained_tokens, manifest.text_bytes) == (trained, nbytes)
    assert manifest.bits_per_byte(1.0) == pytest.approx(trained / nbytes / np.log(2))


def test_every_turn_of_the_assistant_is_trained_with_its_eos(tmp_path, tokenizer):
    turns = [("user", "2 + 2?"), ("assistant", "4"), ("user", "3 + 3?"), ("assistant", "6"), ("user", "thanks")]
    shard = write(tmp_path / "0.jsonl", [{"messages": [{"role": r, "content": c} for r, c in turns]}])
    prepare([shard], str(tmp_path / "out"), tokenizer, format="messages")
    encode = lambda text: tokenizer.encode_batch([text], special_tokens=False)[0]
    ids, targets = [], []
    for question, answer in (("2 + 2?", "4"), ("3 + 3?", "6")):
        before, after = encode(f"# User:\n{question}\n\n# Assistant:\n"), [*encode(answer), tokenizer.eos_id]
        ids, targets = [*ids, *before, *after], [*targets, *[-1] * len(before), *after]
    assert examples(tmp_path / "out") == [(ids, targets)]  # nothing is learned from what follows the last turn
    saved = load_tokenizer(tmp_path / "out/tokenizer")
    assert b"generation" in saved.metadata["chat_template.jinja"]


@settings(deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6).filter(lambda runs: runs[-1][1]),
    st.integers(2, 20),
)
def test_what_is_cut_is_the_beginning_and_the_last_completion_stays_whole(runs, length):
    trained = np.repeat([flag for _, flag in runs], [count for count, _ in runs])
    ids = np.arange(len(trained))
    if len(ids) <= length:
        return
    fitting = fit(ids, trained, length)
    last = len(trained) - int(np.argmin(trained[::-1])) if not trained.all() else 0  # where the last completion begins
    if last <= len(ids) - length:
        assert fitting is None
        return
    kept, mask = fitting
    assert kept.tolist() == ids[-length:].tolist()
    cut = len(ids) - length
    for at in range(cut, len(ids)):
        start = at
        while trained[at] and start > 0 and trained[start - 1]:
            start -= 1
        assert mask[at - cut] == (trained[at] and start > cut)


@pytest.mark.parametrize("too_long", ["cut", "drop"])
def test_long_examples_are_counted_by_reason_and_listed(tmp_path, tokenizer, too_long):
    answers = [("x" * 3, "y"), ("1 2 3 4 5 6 7 8 9 " * 3, "z = 1"), ("a", "1 2 3 4 5 6 7 8 9 " * 3)]
    shard = write(tmp_path / "0.jsonl", [{"prompt": prompt, "completion": answer} for prompt, answer in answers])
    settings = dict(format="pairs", sequence_length=20, too_long=too_long)
    manifest = prepare([shard], str(tmp_path / "out"), tokenizer, **settings)
    report, is_cut = load_report(tmp_path / "out"), too_long == "cut"
    tokens = [sum(len(tokenizer.encode(text)) for text in pair) + 1 for pair in answers]
    assert tokens[0] <= 21 < min(tokens[1:])
    assert report["long"] == {
        "cut": int(is_cut),
        "examples": [
            {"shard": shard, "line": 2, "tokens": tokens[1], "cut": is_cut},
            {"shard": shard, "line": 3, "tokens": tokens[2], "cut": False},
        ],
    }
    dropped = {"completion longer than the context": 1} if is_cut else {"example longer than the context": 2}
    assert report["stages"][-1]["dropped"] == dropped
    assert manifest.documents == len(examples(tmp_path / "out")) == 1 + is_cut
    assert ("cut to the context: 1 example, listed in report.json" in table(report)) == is_cut


def test_packed_text_keeps_every_token_of_long_documents(tmp_path, texts, tokenizer):
    shard = write(tmp_path / "0.jsonl", [{"text": text} for text in texts])
    manifest = prepare([shard], str(tmp_path / "out"), tokenizer, pack=True, sequence_length=64)
    targets = sum(sum(target >= 0 for target in row) for _, row in examples(tmp_path / "out"))
    assert targets == manifest.trained_tokens == sum(len(tokenizer.encode(text)) for text in texts)


def test_all_workers_and_interruptions_give_the_same_examples(tmp_path, tokenizer):
    shards = [
        write(tmp_path / f"{i}.jsonl", [{"prompt": f"{i}", "completion": f"{n}"} for n in range(9)]) for i in range(3)
    ]
    for workers in (1, 2):
        prepare(shards, str(tmp_path / f"out{workers}"), tokenizer, format="pairs", pack=True, workers=workers)
    one, two = (TokenFiles(tmp_path / f"out{workers}") for workers in (1, 2))
    assert one.manifest == two.manifest
    assert all(np.array_equal(a, b) for a, b in zip(one.masks, two.masks, strict=True))


def test_a_damaged_mask_is_named(tmp_path, tokenizer):
    shard = write(tmp_path / "0.jsonl", [{"prompt": "a", "completion": "b"}])
    prepare([shard], str(tmp_path / "out"), tokenizer, format="pairs")
    [mask] = (tmp_path / "out").glob("*.loss")
    mask.write_bytes(b"\1" * mask.stat().st_size)
    with pytest.raises(UserError, match=rf"{mask}: does not match its checksum in manifest.json"):
        TokenFiles(tmp_path / "out")


def test_a_missing_index_is_named(tmp_path, tokenizer):
    shard = write(tmp_path / "0.jsonl", [{"prompt": "a", "completion": "b"}])
    prepare([shard], str(tmp_path / "out"), tokenizer, format="pairs")
    [index] = (tmp_path / "out").glob("*.index")
    index.unlink()
    with pytest.raises(
        UserError, match=rf"{index}: missing, but listed in manifest.json; run codegen-jax prepare again"
    ):
        TokenFiles(tmp_path / "out")


def test_filters_and_deduplication_see_the_records_own_text(tmp_path, tokenizer):
    """Alpaca's prompt alone is 150 characters on a line, and would make short examples near-duplicates."""
    records = [{"instruction": f"{n} is what number", "output": f"it is {n}"} for n in ("one", "two", "three")]
    shard = write(tmp_path / "0.jsonl", [*records, records[0]])
    settings = dict(format="alpaca", filters="code", dedup="minhash")
    assert prepare([shard], str(tmp_path / "out"), tokenizer, **settings).documents == 3


def test_a_tokenizer_that_changes_the_beginning_of_texts_is_refused(tmp_path, texts):
    shard = write(tmp_path / "0.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(UserError, match=r"^tokenizer: it changes spaces at the beginning of a text"):
        prepare([shard], str(tmp_path / "out"), FOREIGN["space prefix"](texts[:9]), format="pairs")


def test_the_chat_template_of_any_source_is_kept_and_two_different_ones_are_refused(tmp_path, tokenizer, token_folder):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b " * 40}]
    shard = write(tmp_path / "0.jsonl", [{"messages": turns}])
    for name, template in (("chat", None), ("other", DEFAULT.replace("# ", "## "))):
        prepare([shard], str(tmp_path / name), tokenizer, format="messages", template=template)
    paths = {"alpha": str(token_folder), "chat": f"{tmp_path}/chat", "other": f"{tmp_path}/other"}
    sources = {name: SourceConfig(path, 1.0) for name, path in paths.items()}
    both = {name: sources[name] for name in ("alpha", "chat")}
    _, kept = open_sources(DataConfig(sources=both, sequence_length=300))
    assert kept.metadata["chat_template.jinja"].decode() == DEFAULT
    with pytest.raises(UserError, match=r"chat_template.jinja and .*chat_template.jinja differ; prepare all data"):
        open_sources(DataConfig(sources=sources, sequence_length=300))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory, texts, tokenizer, token_folder):
    """Packed pairs and plain text."""
    root = tmp_path_factory.mktemp("mixture")
    records = [{"prompt": text[:40], "completion": text[40 : 40 + 3 * n]} for n, text in enumerate(texts, 3)]
    shard = write(root / "0.jsonl", records)
    prepare([shard], str(root / "pairs"), tokenizer, format="pairs", pack=True, sequence_length=64)
    sources = {"pairs": SourceConfig(f"{root}/pairs", 1.0), "text": SourceConfig(str(token_folder), 1.0)}
    return DataConfig(sources=sources, sequence_length=64, document_mask=True)


@pytest.mark.parametrize("axes", [(8, 1, 1), (1, 4, 2)])
def test_batches_of_a_mixture_do_not_depend_on_the_mesh(mixture, axes):
    config = tiny_run(data=mixture, model={"n_positions": 64})
    sources, _ = open_sources(mixture)

    def batches(axes):
        mesh = make_mesh(MeshConfig(*axes), devices(int(np.prod(axes))))
        windows = [source.rows for source in sources]
        return Batches(windows, make_order(config, sources), batch_sharding(mesh))

    one, many = batches((1, 1, 1)), batches(axes)
    for step in (0, 1, 50):
        np.testing.assert_array_equal(one(step), many(step))
    assert ((np.asarray(one(0)) < 0).any(axis=1)).sum() == 8  # every second row is of pairs


def test_show_marks_what_is_trained(mixture):
    shown = list(show(tiny_run(data=mixture, model={"n_positions": 64}), step=1))
    for header, text in zip(shown[::2], shown[1::2], strict=True):
        is_pairs = "source pairs" in header
        assert text.startswith("-- document ") and ("\n-- not trained\n" in text) == is_pairs
        assert text.count("-- trained\n") == text.count("-- document ") * is_pairs
        assert text.count("-- document ") == header.count(" to ") or not is_pairs


def test_packed_examples_require_a_document_mask(mixture):
    with pytest.raises(
        UserError, match=r"^data.document_mask: must be true, since .*pairs has several examples per row"
    ):
        open_sources(DataConfig(sources=mixture.sources, sequence_length=64))
