"""Every token counted by prepare is used in training, and all counts agree."""

import json
import re

import numpy as np
import pytest

from codegen_jax.data.order import Order
from codegen_jax.data.prepare import prepare
from codegen_jax.data.prepare_report import load_report
from codegen_jax.data.show import show
from codegen_jax.data.sources import make_order, open_sources
from codegen_jax.data.tokens import Manifest, TokenFiles, Windows
from codegen_jax.training.loop import train
from tests.conftest import write_shard
from tests.runs import tiny_run
from tests.training.test_loop import losses


@pytest.fixture(scope="module")
def small_files(tmp_path_factory, texts, tokenizer):
    """Token files of twelve shards, ten of them shorter than a window of 33 tokens."""
    root = tmp_path_factory.mktemp("small")
    documents = [["x = 1\n"]] * 5 + [texts[:2]] + [["def f():\n    return 2\n", "y"]] * 5 + [texts[2:4]]
    shards = [write_shard(root / f"{i:02}.jsonl", texts) for i, texts in enumerate(documents)]
    prepare(shards, str(root / "tokens"), tokenizer)
    return root / "tokens"


def test_every_token_of_every_file_is_a_target_once_per_epoch(small_files):
    files = TokenFiles(small_files)
    windows = Windows(files, 32)
    order = Order([len(windows)], [1], batch_size=1, seed=7)
    targets = np.concatenate([windows[order.row(row).window][1:] for row in range(len(windows))])
    tokens = np.concatenate(files.arrays)
    assert 0 <= windows.leftover < 32
    assert np.bincount(targets).tolist() == np.bincount(tokens[1 : len(tokens) - windows.leftover]).tolist()


def test_report_manifest_and_files_agree_on_tokens_and_documents(small_files):
    manifest, report = Manifest.load(small_files), load_report(small_files)
    sizes = {file.name: file.stat().st_size // 2 for file in sorted(small_files.glob("*.ds"))}
    assert manifest.files == sizes and len(sizes) == 12
    assert manifest.tokens == sum(sizes.values()) == sum(report["tokens"].values())
    ids = np.concatenate(TokenFiles(small_files).arrays)
    assert manifest.documents == (ids == manifest.eos_id).sum() == 5 + 2 + 10 + 2


def test_data_show_prints_every_token_of_an_epoch_except_leftovers(small_files):
    files = TokenFiles(small_files)
    config = tiny_run(tokens=small_files, training={"batch_size": 1})
    windows = Windows(files, 32)
    shown = np.zeros(files.manifest.tokens, int)
    names = list(files.manifest.files)
    offsets = np.cumsum([0, *files.manifest.files.values()])
    for step in range(1, len(windows) + 1):
        header, _ = show(config, step)
        assert f"of {len(windows)}, tokens" in header
        for start, stop, name in re.findall(r"tokens (\d+) to (\d+) of \S*?([^/ ,]+\.ds)", header):
            offset = offsets[names.index(name)]
            shown[offset + int(start) : offset + int(stop) + 1] += 1
    borders = np.zeros_like(shown)
    borders[32 : 32 * len(windows) : 32] = 1  # the last token of a window is the first of the next one
    assert (
        shown.tolist() == [1 + border for border in borders[: len(shown) - windows.leftover]] + [0] * windows.leftover
    )


def test_data_show_numbers_documents_per_file_in_a_window_across_files(small_files, tokenizer):
    config = tiny_run(tokens=small_files, training={"batch_size": 1})
    sources, _ = open_sources(config.data)
    order = make_order(config, sources)
    step = next(step for step in range(len(sources[0].rows)) if order.row(step).window == 0)
    header, text = show(config, step + 1)
    assert header.count(".ds") > 3
    assert text.count("-- document 0\n") == header.count(".ds")  # documents are numbered per file, starting at 0


def test_a_run_started_under_the_old_window_rule_resumes_under_it(tmp_path, small_files):
    def with_old_rule(folder):
        manifest = json.loads((small_files / "manifest.json").read_text())
        del manifest["windows"]
        folder.mkdir()
        for file in small_files.iterdir():
            if file.name != "manifest.json":
                (folder / file.name).symlink_to(file)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    old = with_old_rule(tmp_path / "old")
    train(tiny_run(tmp_path / "whole", old))
    train(tiny_run(tmp_path / "run", old, training={"steps": 3}))
    record = json.loads((tmp_path / "run/run.json").read_text())
    del record["data"][""]["windows"]  # as older runs wrote it
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    train(tiny_run(tmp_path / "run", old))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    train(tiny_run(tmp_path / "new", small_files))
    assert losses(tmp_path / "new") != losses(tmp_path / "whole")
