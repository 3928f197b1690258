"""Windows of token files, and errors that name missing, damaged or changed files."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from codegen_jax.data.tokens import Manifest, TokenFiles, Windows, checksum
from codegen_jax.data.train_tokenizer import train_sentencepiece
from codegen_jax.errors import UserError


@pytest.fixture
def copy(tmp_path, token_folder):
    """A copy of the token files that tests may damage."""
    return shutil.copytree(token_folder, tmp_path / "copy")


def make_files(folder, lengths, dtype):
    """Token files with consecutive numbers."""
    folder.mkdir()
    size = np.dtype(dtype).itemsize
    for i, length in enumerate(lengths):
        np.arange(1000 * i, 1000 * i + length, dtype=dtype).tofile(folder / f"{i}.ds")
    files = {f"{i}.ds": length for i, length in enumerate(lengths)}
    checksums = {name: checksum(folder / name) for name in files}
    Manifest("t", 70_000, 1, size, 1, sum(lengths), 1, files, checksums, [], 0, "folder").save(folder)
    return TokenFiles(folder)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_windows_cross_file_boundaries_and_overlap_by_one_token(tmp_path, dtype):
    files = make_files(tmp_path / "t", [13, 1, 2, 30], dtype)
    windows, tokens = Windows(files, sequence_length=4), np.concatenate(files.arrays)
    assert (len(windows), windows.leftover) == (11, 1)  # the first token, 44 targets and one leftover token
    for index in range(11):
        window = windows[index]
        assert window.tolist() == tokens[4 * index : 4 * index + 5].tolist() and window.dtype == np.int32
        parts = [files.arrays[file][start:stop] for file, start, stop in windows.spans(index)]
        assert np.concatenate(parts).tolist() == window.tolist() and all(map(len, parts))
    assert windows.spans(3) == [(0, 12, 13), (1, 0, 1), (2, 0, 2), (3, 0, 1)]


def test_under_the_old_rule_each_file_is_split_separately(tmp_path):
    make_files(tmp_path / "t", [13, 4, 5, 30], "<u2")
    old = json.loads((tmp_path / "t/manifest.json").read_text())
    del old["windows"]
    (tmp_path / "t/manifest.json").write_text(json.dumps(old))
    windows = Windows(TokenFiles(tmp_path / "t"), sequence_length=4)
    starts = [0, 4, 8, 2000, 3000, 3004, 3008, 3012, 3016, 3020, 3024]  # 4 tokens are too few for a window of 5
    assert [windows[index][0] for index in range(len(windows))] == starts
    assert all((np.diff(windows[index]) == 1).all() for index in range(len(windows)))
    assert windows.leftover == 0 + 4 + 0 + 1


def test_ids_above_65535_are_kept(tmp_path):
    files = make_files(tmp_path / "t", [5], "<u4")
    np.array([65_535, 65_536, 69_999, 0, 1], "<u4").tofile(tmp_path / "t" / "0.ds")
    assert Windows(files, 4)[0].tolist() == [65_535, 65_536, 69_999, 0, 1]


def test_too_few_tokens_for_a_window_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"30 tokens, too few .*sequence_length \+ 1 = 32"):
        Windows(make_files(tmp_path / "t", [10, 20], "<u2"), sequence_length=31)


def test_the_error_for_a_missing_manifest_names_the_command_to_run(copy, tmp_path):
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"unfinished token files .* codegen-jax prepare"):
        TokenFiles(copy)
    with pytest.raises(UserError, match="missing or empty token files"):
        TokenFiles(tmp_path / "nowhere")


def test_a_damaged_manifest_is_named(copy):
    (copy / "manifest.json").write_text('{"tokens": 3}')
    with pytest.raises(UserError, match=r"manifest.json: damaged"):
        TokenFiles(copy)


def test_a_truncated_or_missing_file_is_named(copy):
    file = next(copy.glob("*.ds"))
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match=rf"{file.name}: \d+ bytes, but \d+ bytes according to manifest.json"):
        TokenFiles(copy)
    file.unlink()
    with pytest.raises(UserError, match=f"{file.name}: missing"):
        TokenFiles(copy)


def test_a_changed_file_of_the_right_size_is_named(copy):
    file = next(copy.glob("*.ds"))
    file.write_bytes(file.read_bytes()[2:] + b"\0\0")
    with pytest.raises(UserError, match=f"{file.name}: does not match its checksum in manifest.json"):
        TokenFiles(copy)


def test_the_error_for_a_swapped_tokenizer_names_both(copy, texts, tokenizer):
    other = train_sentencepiece(texts, vocab_size=400)
    other.save(copy / "tokenizer")
    with pytest.raises(UserError, match=f"{tokenizer.fingerprint}.*{other.fingerprint}"):
        TokenFiles(copy).tokenizer()


@pytest.mark.parametrize("size", [0, 1000, 1 << 16, 100_000, 300_000])
def test_a_checksum_covers_the_first_and_last_64_kib(tmp_path, size):
    content = np.random.default_rng(0).bytes(size)
    (tmp_path / "file").write_bytes(content)
    expected = hashlib.sha256(content[:65536] + content[-65536:]).hexdigest()[:16]
    assert checksum(tmp_path / "file") == expected
