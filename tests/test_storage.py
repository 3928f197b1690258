"""gs:// on an emulated server: tokens are read by range; a run's folder is written, resumed and read."""

import dataclasses
import json
import os
import subprocess
import sys

import fsspec
import pytest

from codegen_jax.cli import main
from codegen_jax.errors import UserError
from codegen_jax.storage import expand, local_copy, open_path
from codegen_jax.training.loop import train
from codegen_jax.training.metrics import read_metrics
from tests.evaluation.benchmarks import write_lines
from tests.peers import peer, save, tiny_bpe
from tests.processes import free_port, start
from tests.runs import tiny_run

# TensorStore needs the generation of each object it reads, which this emulator omits
SERVER = """
import sys, time
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server
download = objects.download
def with_generation(request, response, storage, *args, **kwargs):
    download(request, response, storage, *args, **kwargs)
    if response.status.value < 300:
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = found["generation"]
objects.download = with_generation
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def bucket():
    """The environment in which gcsfs and TensorStore use an emulated Cloud Storage."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert "ready" in server.stdout.readline()
    address = f"http://127.0.0.1:{port}"
    anyone = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any"}
    yield {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, "NO_GCE_CHECK": "true"} | anyone
    server.kill()


def test_a_run_with_remote_data_and_output_matches_a_local_run(tmp_path, token_folder, bucket):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.items():
            patch.setenv(name, value)
        files = fsspec.filesystem("gs")
        files.put(f"{token_folder}/", "bucket/tokens/", recursive=True)

        def run(output, tokens, steps):
            config = tiny_run(output, tokens, data={"validation": str(tokens)}, training={"steps": steps})
            (process,) = start(config, tmp_path / "run.yaml", **bucket)
            output, error = process.communicate(timeout=120)
            assert process.returncode == 0, output + error

        run(tmp_path / "local", token_folder, 6)
        run("gs://bucket/run", "gs://bucket/tokens", 3)
        run("gs://bucket/run", "gs://bucket/tokens", 6)
        files.invalidate_cache()
        copy = local_copy("gs://bucket/run")

    losses = lambda folder: {line["step"]: line["loss"] for line in read_metrics(folder) if "loss" in line}
    assert losses(copy) == losses(tmp_path / "local")
    names = sorted(path.name for path in (tmp_path / "local").iterdir() if path.name != "lock")  # gs:// has no lock
    assert sorted(path.name for path in copy.iterdir()) == names

    words = ["generate", "MODEL", "--prompt", "def f", "--temperature", "0", "--max-new-tokens", "4", "--json"]
    completions = []
    for model in ("gs://bucket/run", str(tmp_path / "local")):
        words[1] = model
        done = subprocess.run(
            [sys.executable, "-m", "codegen_jax", *words], capture_output=True, text=True, env=os.environ | bucket
        )
        assert done.returncode == 0, done.stderr
        completions.append(json.loads(done.stdout))
    assert completions[0] == completions[1]


def test_a_run_works_for_a_user_without_a_name(tmp_path, token_folder, monkeypatch):
    """As in a container that runs as a numeric user."""

    def unknown(uid: int):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    config = tiny_run(tmp_path / "run", token_folder)
    for steps in (3, 6):  # the second run resumes the first
        train(dataclasses.replace(config, training=dataclasses.replace(config.training, steps=steps)))
    assert [line["step"] for line in read_metrics(config.output) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_unknown_storage_is_reported():
    with pytest.raises(UserError, match="hdfs://a/b: unknown kind of storage"):
        open_path("hdfs://a/b")


def test_a_missing_storage_library_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match="s3:// requires s3fs; pip install s3fs"):
        open_path("s3://a/b")


def test_existing_names_are_not_expanded_and_invalid_expansions_are_rejected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMPTY", "")
    for name in ("~me", "a$EMPTY", "$(x)"):
        with pytest.raises(UserError, match=r"no such home|EMPTY is not set|must be followed by the name"):
            expand(name)
        (tmp_path / name).mkdir()
        assert expand(name) == name


def test_a_shared_evaluation_in_a_remote_folder_matches_a_local_one(tmp_path, bucket):
    fields = {"prompt": "def one():\n    return 1\n#", "canonical_solution": " one\n", "entry_point": "one"}
    test = "def check(candidate):\n    assert candidate() == 1\n"
    write_lines(tmp_path / "own.jsonl", [fields | {"task_id": f"Own/{n}", "test": test} for n in range(2)])
    tokenizer = tiny_bpe()
    save(peer(vocab_size=tokenizer.vocab_size), tmp_path / "model", tokenizer=tokenizer)

    def evaluate(output, *words):
        drawn = ["--problems", str(tmp_path / "own.jsonl"), "--num-samples", "2", "--max-new-tokens", "4", "--k", "1"]
        main(["evaluate", str(tmp_path / "model"), "humaneval", "--output", str(output), *drawn, *words])

    with pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.items():
            patch.setenv(name, value)
        for part in (1, 2):
            evaluate(tmp_path / "local", "--share", f"{part}/2")
            evaluate("gs://bucket/evaluated", "--share", f"{part}/2")
        fsspec.filesystem("gs").invalidate_cache()
        copy = local_copy("gs://bucket/evaluated")
    names = [path.name for path in (tmp_path / "local").iterdir() if path.is_file() and "timings" not in path.name]
    assert len(names) == 2 * 3 + 4
    for name in names:
        assert (copy / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
