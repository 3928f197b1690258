"""Errors for paths that are missing or one folder too high, and for files that are only placeholders for others."""

import os
import subprocess

import pytest

from codegen_jax.errors import UserError
from codegen_jax.mistaken_paths import instead, missing, read_text, refuse_stand_in, stand_in


def test_a_path_that_is_not_there_says_what_its_folder_holds_and_the_nearest_name(tmp_path):
    for name in ("tokenizer", "tokens", ".hidden"):
        (tmp_path / "demo" / name).mkdir(parents=True)
    there = f"{tmp_path}/demo holds tokenizer, tokens; did you mean tokenizer?"
    assert missing(f"{tmp_path}/demo/tokenizr") == f"{tmp_path}/demo/tokenizr: there is no such file or folder; {there}"
    assert missing(tmp_path / "demo/tokenizr/file.json").endswith(there)
    assert missing(tmp_path / "demoo/x").endswith(f"{tmp_path} holds demo; did you mean demo?")
    assert missing(tmp_path / "demo/tokens/x").endswith("tokens is empty")


def test_a_large_folder_is_not_listed_in_full(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.yaml").touch()
    assert "05.yaml, 06.yaml, 07.yaml and 12 more; did you mean 19.yaml?" in missing(tmp_path / "19.yml")


def test_what_a_shell_would_have_replaced_is_written_out(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    assert missing("$SCRATCH/run").endswith("write /scratch/run")
    assert missing("~/run").endswith(f"write {os.environ['HOME']}/run")


def holds_x(folder):
    return (folder / "x").exists()


def make(folder):
    folder.mkdir(parents=True)
    (folder / "x").touch()


def test_the_newest_of_several_versions_is_named(tmp_path):
    for step in (900, 1000, 50):
        make(tmp_path / f"trainer/checkpoint-{step}")
    assert instead(tmp_path, holds_x) == f"; give {tmp_path}/trainer/checkpoint-1000"


def test_of_what_the_hubs_cache_has_of_a_repository_the_newest_is_what_its_refs_say(tmp_path):
    old, new = "b" * 40, "a" * 40
    make(tmp_path / "models--a--b/snapshots" / new)
    make(tmp_path / "models--a--b/snapshots" / old)
    (tmp_path / "models--a--b/refs").mkdir()
    (tmp_path / "models--a--b/refs/main").write_text(new)
    for above in (tmp_path, tmp_path / "models--a--b", tmp_path / "models--a--b/snapshots"):
        assert instead(above, holds_x) == f"; give {tmp_path}/models--a--b/snapshots/{new}"


def test_of_different_things_none_is_chosen(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b")
    assert instead(tmp_path, holds_x).startswith("; give one of those in it, such as ")
    (tmp_path / "c").mkdir()
    assert instead(tmp_path / "c", holds_x) == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 797365000\n", "git lfs pull"),
        ("/annex/objects/SHA256E-s797365000--aa\n", "git annex get"),
        ("\n<!DOCTYPE html>\n<html class=''>", "/resolve/"),
        ("<HTML>", "a web page"),
    ],
)
def test_a_stand_in_is_named_with_its_remedy(tmp_path, content, words):
    (tmp_path / "file").write_text(content)
    with pytest.raises(UserError, match=f"^{tmp_path}/file: .*{words}"):
        refuse_stand_in(tmp_path / "file")


def test_gits_own_pointer_is_known(tmp_path):
    lfs = subprocess.run(["git", "lfs", "pointer", "--file=/bin/sh"], capture_output=True)
    if lfs.returncode:
        pytest.skip("git-lfs is not installed")
    assert "Git LFS" in (stand_in(lfs.stdout[:64]) or "")


@pytest.mark.parametrize("content", [b"", b"{}", b"version: 1", b"PK\x03\x04", b"\x89HDF", b"<|endoftext|>"])
def test_other_files_are_let_pass(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    refuse_stand_in(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run.yml", "there is no such file or folder; .* holds .*; did you mean run.yaml?"),
        ("folder", "a folder, where a file is read"),
        ("binary", "not text in UTF-8 .byte 2 is 0xff."),
        ("/proc/self/mem", "can't be read .Input/output error."),
    ],
)
def test_a_file_that_is_no_text_is_named_in_one_sentence(tmp_path, name, words):
    (tmp_path / "run.yaml").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"ab\xff\x00")
    path = tmp_path / name
    with pytest.raises(UserError, match=f"^{path}: {words}"):
        read_text(path)


def test_a_text_is_read_without_its_bom(tmp_path):
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_text(tmp_path / "file") == "a\r\nb"
