"""Errors for paths that do not exist or are a parent of the right folder, and for files that are only placeholders."""

import os
import subprocess

import pytest

from codegen_jax.errors import UserError
from codegen_jax.mistaken_paths import describe_placeholder, instead, missing, read_text, reject_placeholder


def test_the_error_for_a_missing_path_lists_its_folder_and_suggests_a_name(tmp_path):
    for name in ("tokenizer", "tokens", ".hidden"):
        (tmp_path / "demo" / name).mkdir(parents=True)
    hint = f"{tmp_path}/demo contains tokenizer, tokens; did you mean tokenizer?"
    assert missing(f"{tmp_path}/demo/tokenizr") == f"{tmp_path}/demo/tokenizr: no such file or folder; {hint}"
    assert missing(tmp_path / "demo/tokenizr/file.json").endswith(hint)
    assert missing(tmp_path / "demoo/x").endswith(f"{tmp_path} contains demo; did you mean demo?")
    assert missing(tmp_path / "demo/tokens/x").endswith("tokens is empty")


def test_a_large_folder_is_not_listed_in_full(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.yaml").touch()
    assert "05.yaml, 06.yaml, 07.yaml and 12 more; did you mean 19.yaml?" in missing(tmp_path / "19.yml")


def test_the_expanded_form_of_an_unexpanded_path_is_suggested(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    assert missing("$SCRATCH/run").endswith("use /scratch/run")
    assert missing("~/run").endswith(f"use {os.environ['HOME']}/run")


def contains_x(folder):
    return (folder / "x").exists()


def make(folder):
    folder.mkdir(parents=True)
    (folder / "x").touch()


def test_the_newest_of_several_versions_is_suggested(tmp_path):
    for step in (900, 1000, 50):
        make(tmp_path / f"trainer/checkpoint-{step}")
    assert instead(tmp_path, contains_x) == f"; use {tmp_path}/trainer/checkpoint-1000"


def test_in_the_hub_cache_the_revision_of_the_main_branch_is_suggested(tmp_path):
    old, new = "b" * 40, "a" * 40
    make(tmp_path / "models--a--b/snapshots" / new)
    make(tmp_path / "models--a--b/snapshots" / old)
    (tmp_path / "models--a--b/refs").mkdir()
    (tmp_path / "models--a--b/refs/main").write_text(new)
    for above in (tmp_path, tmp_path / "models--a--b", tmp_path / "models--a--b/snapshots"):
        assert instead(above, contains_x) == f"; use {tmp_path}/models--a--b/snapshots/{new}"


def test_unrelated_matches_are_all_suggested(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b")
    assert instead(tmp_path, contains_x).startswith("; use one of the folders in it, such as ")
    (tmp_path / "c").mkdir()
    assert instead(tmp_path / "c", contains_x) == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 797365000\n", "git lfs pull"),
        ("/annex/objects/SHA256E-s797365000--aa\n", "git annex get"),
        ("\n<!DOCTYPE html>\n<html class=''>", "/resolve/"),
        ("<HTML>", "a web page"),
    ],
)
def test_a_placeholder_is_rejected_with_its_remedy(tmp_path, content, words):
    (tmp_path / "file").write_text(content)
    with pytest.raises(UserError, match=f"^{tmp_path}/file: .*{words}"):
        reject_placeholder(tmp_path / "file")


def test_a_pointer_written_by_git_lfs_is_recognized(tmp_path):
    lfs = subprocess.run(["git", "lfs", "pointer", "--file=/bin/sh"], capture_output=True)
    if lfs.returncode:
        pytest.skip("git-lfs is not installed")
    assert "Git LFS" in (describe_placeholder(lfs.stdout[:64]) or "")


@pytest.mark.parametrize("content", [b"", b"{}", b"version: 1", b"PK\x03\x04", b"\x89HDF", b"<|endoftext|>"])
def test_other_files_are_accepted(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    reject_placeholder(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run.yml", "no such file or folder; .* contains .*; did you mean run.yaml?"),
        ("folder", "is a folder, but must be a file"),
        ("binary", "not UTF-8 text .byte 2 is 0xff."),
        ("/proc/self/mem", "can't be read .Input/output error."),
    ],
)
def test_a_path_that_is_not_a_text_file_is_rejected_in_one_line(tmp_path, name, words):
    (tmp_path / "run.yaml").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"ab\xff\x00")
    path = tmp_path / name
    with pytest.raises(UserError, match=f"^{path}: {words}"):
        read_text(path)


def test_a_byte_order_mark_is_removed(tmp_path):
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_text(tmp_path / "file") == "a\r\nb"
