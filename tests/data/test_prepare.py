"""prepare writes the same files whatever the workers, executor or interruptions, and rejects changed inputs."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from codegen_jax.data.prepare import prepare
from codegen_jax.data.prepare_report import load_report
from codegen_jax.data.tokens import TokenFiles
from codegen_jax.data.train_tokenizer import train_sentencepiece
from codegen_jax.errors import UserError
from tests.conftest import write_shard
from tests.data.foreign import FOREIGN
from tests.peers import tiny_bpe
from tests.processes import wait_until

ALL = {"filters": "code", "dedup": "minhash"}  # enables every pass


def contents(folder):
    """All files except datatrove's logs, which contain times."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and "logs" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def shards(tmp_path, texts):
    return [write_shard(tmp_path / f"shards/{i}.jsonl.zst", texts[i::3]) for i in range(3)]


def test_the_files_contain_each_document_once_followed_by_eos(token_folder, texts, tokenizer):
    documents = []
    for array in TokenFiles(token_folder).arrays:
        ends = np.flatnonzero(array == tokenizer.eos_id)
        assert ends[-1] == len(array) - 1
        documents += [tokenizer.decode(ids[:-1]) for ids in np.split(array, ends + 1)[:-1]]
    assert Counter(documents) == Counter(texts)
    assert documents != texts[0::2] + texts[1::2]  # shuffled


def test_the_manifest_counts_documents_bytes_and_tokens(tmp_path, texts, tokenizer):
    shard = write_shard(tmp_path / "0.jsonl", [*texts, "", ""])
    manifest = prepare([shard], str(tmp_path / "out"), tokenizer, seed=3)
    assert TokenFiles(tmp_path / "out").manifest == manifest
    assert manifest.documents == len(texts)
    assert manifest.text_bytes == sum(len(text.encode()) for text in texts)
    assert manifest.tokens == sum(len(tokenizer.encode(text)) + 1 for text in texts)
    assert load_report(tmp_path / "out")["stages"][0]["dropped"] == {"empty text": 2}
    assert (manifest.tokenizer, manifest.token_bytes, manifest.seed) == (tokenizer.fingerprint, 2, 3)


def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path, shards, tokenizer):
    for workers in (1, 2):
        prepare(shards, str(tmp_path / f"{workers}"), tokenizer, workers=workers, **ALL)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_the_manifest_lists_files_in_shard_order(tmp_path, shards, tokenizer, monkeypatch):
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *args: iter(sorted(glob(*args), reverse=True)))
    manifest = prepare(shards, str(tmp_path / "out"), tokenizer)
    monkeypatch.undo()
    for names in (manifest.files, manifest.checksums):
        assert [name[:5] for name in names] == ["00000", "00001", "00002"]


def test_each_file_is_shuffled_differently(tmp_path, tokenizer):
    shards = [write_shard(tmp_path / f"{i}.jsonl", [chr(97 + n) for n in range(20)]) for i in range(2)]
    prepare(shards, str(tmp_path / "out"), tokenizer)
    first, second = TokenFiles(tmp_path / "out").arrays
    assert sorted(first) == sorted(second) and first.tolist() != second.tolist()


def test_the_seed_determines_the_order_of_documents(tmp_path, shards, tokenizer):
    for seed in (0, 1):
        prepare(shards, str(tmp_path / f"{seed}"), tokenizer, seed=seed)
    zero, one = (TokenFiles(tmp_path / f"{seed}").arrays[0] for seed in (0, 1))
    assert sorted(zero) == sorted(one) and zero.tolist() != one.tolist()


def test_an_interrupted_preparation_resumes_with_the_missing_shards(tmp_path, shards, tokenizer):
    prepare(shards, str(tmp_path / "whole"), tokenizer)
    good = Path(shards[2]).read_bytes()
    Path(shards[2]).write_bytes(good[:-10])
    with pytest.raises(UserError, match=r"shards/2.jsonl.zst: can't be read"):
        prepare(shards, str(tmp_path / "resumed"), tokenizer)
    with pytest.raises(UserError, match="unfinished token files"):
        TokenFiles(tmp_path / "resumed")
    done = next((tmp_path / "resumed").glob("00000*.ds"))
    os.utime(done, ns=(1, 1))

    Path(shards[2]).write_bytes(good)
    prepare(shards, str(tmp_path / "resumed"), tokenizer)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    assert done.stat().st_mtime_ns == 1  # not written again


def test_an_unfinished_preparation_with_other_arguments_is_rejected(tmp_path, shards, tokenizer, texts):
    Path(shards[2]).write_bytes(b"broken")
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="can't be read"):
        prepare(shards, out, tokenizer)
    before = contents(out)
    other = train_sentencepiece(texts, vocab_size=400)
    for arguments, seed in (
        ((shards[1:], out, tokenizer), 0),
        ((shards[::-1], out, tokenizer), 0),
        (([*shards, write_shard(tmp_path / "more.jsonl", ["x"])], out, tokenizer), 0),
        ((shards, out, other), 0),
        ((shards, out, tokenizer), 1),
    ):
        with pytest.raises(UserError, match="unfinished preparation"):
            prepare(*arguments, seed=seed)
    assert contents(out) == before


def test_a_nonempty_folder_is_rejected_and_left_unchanged(tmp_path, shards, tokenizer):
    prepare(shards, str(tmp_path / "done"), tokenizer)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for name, message in (("done", "already contains token files"), ("mine", "not empty"), ("file", "not empty")):
        with pytest.raises(UserError, match=message):
            prepare(shards, str(tmp_path / name), tokenizer)
    assert contents(tmp_path) == before


def test_shards_without_documents_are_an_error_and_leave_no_files(tmp_path, tokenizer):
    shard = write_shard(tmp_path / "0.jsonl", ["", ""])
    with pytest.raises(UserError, match="no documents left from 1 shard"):
        prepare([shard], str(tmp_path / "out"), tokenizer)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("reached", ["0_digests", "2_signatures", "5_tokens"])
def test_a_killed_preparation_resumes_to_the_same_files(tmp_path, texts, tokenizer, reached):
    """A real process is killed once the first task of a pass is done; completed tasks are not repeated."""
    shards = [write_shard(tmp_path / f"shards/{i}.jsonl.zst", texts[i::8] * 3) for i in range(8)]
    tokenizer.save(tmp_path / "tokenizer")
    prepare(shards, str(tmp_path / "whole"), tokenizer, **ALL)
    args = ["prepare", *shards, "--output", str(tmp_path / "killed"), "--tokenizer", str(tmp_path / "tokenizer")]
    args += ["--filters", "code", "--dedup", "minhash"]
    errors = tmp_path / "errors"
    with errors.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "codegen_jax", *args], stderr=stderr, start_new_session=True)
    done = tmp_path / "killed/logs" / reached / "completions"
    while not (done.exists() and any(done.iterdir())):
        assert process.poll() is None, errors.read_text()
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    completed = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed/logs").rglob("completions/*")}
    assert not (tmp_path / "killed/manifest.json").exists()
    prepare(shards, str(tmp_path / "killed"), tokenizer, **ALL)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert load_report(tmp_path / "killed") == load_report(tmp_path / "whole")
    assert completed == {file: file.stat().st_mtime_ns for file in completed}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by Linux's /proc")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_process_outlives_a_killed_preparation(tmp_path, texts, tokenizer, workers):
    shards = [write_shard(tmp_path / f"shards/{i}.jsonl", texts * 200) for i in range(2)]  # half a minute of work each
    tokenizer.save(tmp_path / "tokenizer")
    args = ["prepare", *shards, "--output", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tokenizer")]
    with (tmp_path / "errors").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "codegen_jax", *args, "--workers", workers], stderr=stderr, start_new_session=True
        )
    try:
        tasks = tmp_path / "out/logs/0_tokens/logs"
        wait_until(lambda: len(list(tasks.glob("task_*.log"))) == int(workers))
        assert len(session_processes(process.pid)) >= int(workers)
        process.kill()
        process.wait()
        wait_until(lambda: not session_processes(process.pid), timeout=10)
        assert not (tmp_path / "out/logs/0_tokens/completions").exists()  # the processes were still busy with a task
    finally:
        for pid in session_processes(process.pid):
            os.kill(pid, signal.SIGKILL)


def session_processes(session):
    """Ids of a session's processes; the session is field 6 of /proc/PID/stat, the fourth after the name in brackets."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has just ended
            state, _, _, owner = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            found += [int(folder.name)] if int(owner) == session and state != "Z" else []
    return found


def test_a_shard_that_changes_between_passes_is_named(tmp_path, shards, tokenizer, texts):
    good = Path(shards[2]).read_bytes()
    Path(shards[2]).write_bytes(good[:-10])
    with pytest.raises(UserError, match=r"2.jsonl.zst: can't be read"):
        prepare(shards, str(tmp_path / "out"), tokenizer, dedup="exact")
    Path(shards[2]).write_bytes(good)
    write_shard(Path(shards[0]), texts[:2])  # its digests are those of the earlier texts
    with pytest.raises(UserError, match=r"0.jsonl.zst: has 2 documents, but had \d+ when they were hashed; remove"):
        prepare(shards, str(tmp_path / "out"), tokenizer, dedup="exact")


def test_a_long_document_is_encoded_in_chunks_to_the_same_ids(tmp_path, texts, tokenizer, monkeypatch):
    monkeypatch.setattr("codegen_jax.data.cut.CHUNK_LENGTH", 300)
    monkeypatch.setattr("codegen_jax.data.writer.BATCH", 1000)
    prepare([write_shard(tmp_path / "0.jsonl", ["\n".join(texts)])], str(tmp_path / "out"), tokenizer)
    (array,) = TokenFiles(tmp_path / "out").arrays
    assert array.tolist() == [*tokenizer.encode("\n".join(texts)), tokenizer.eos_id]
    assert np.fromfile(next((tmp_path / "out").glob("*.index")), "<u8").tolist() == [len(array)]


def test_a_document_that_cannot_be_cut_is_dropped_and_counted(tmp_path, texts, tokenizer, monkeypatch):
    monkeypatch.setattr("codegen_jax.data.cut.CHUNK_LENGTH", 100)
    monkeypatch.setattr("codegen_jax.data.filters.MAX_CHUNK_LENGTH", 1000)
    shard = write_shard(tmp_path / "0.jsonl", ["x" * 1001, "line\n" * 1001, "line\r\n" * 1001, "\0" * 100])
    assert prepare([shard], str(tmp_path / "out"), tokenizer).documents == 3
    reasons = load_report(tmp_path / "out")["stages"][0]["dropped"]
    assert reasons == {"more than 1,000 characters without whitespace": 1}
    assert prepare([shard], str(tmp_path / "whole"), FOREIGN["space prefix"](texts[:9])).documents == 1
    reasons = load_report(tmp_path / "whole")["stages"][0]["dropped"]
    assert reasons == {
        "more than 1,000 characters without whitespace": 1,
        "more than 1,000 characters that this tokenizer can't encode in chunks": 2,
    }
    assert prepare([shard], str(tmp_path / "packed"), tokenizer, pack=True).documents == 1
    assert load_report(tmp_path / "packed")["stages"][0]["dropped"] == {"more than 1,000 characters": 3}


def test_special_tokens_in_documents_are_text_unless_requested(tmp_path):
    tokenizer = tiny_bpe()
    text = "EOT = '<|endoftext|>'\n"
    shard = write_shard(tmp_path / "0.jsonl", [text] * 3)
    manifest = prepare([shard], str(tmp_path / "text"), tokenizer)
    (array,) = TokenFiles(tmp_path / "text").arrays
    assert (array == tokenizer.eos_id).sum() == manifest.documents == 3
    assert tokenizer.decode(array[: len(array) // 3 - 1].tolist()) == text
    prepare([shard], str(tmp_path / "special"), tokenizer, special_tokens=True)
    (array,) = TokenFiles(tmp_path / "special").arrays
    assert array.tolist() == [*tokenizer.encode(text), tokenizer.eos_id] * 3
    assert (array == tokenizer.eos_id).sum() == 6


@pytest.mark.parametrize("rules", [{}, ALL], ids=["plain", "all passes"])
def test_a_damaged_shard_can_be_removed_and_the_finished_work_is_kept(tmp_path, shards, tokenizer, rules):
    good = Path(shards[1]).read_bytes()
    Path(shards[1]).write_bytes(good[:-10])
    folder, out = str(tmp_path / "shards"), tmp_path / "out"
    with pytest.raises(UserError, match=r"shards/1.jsonl.zst: can't be read \(.*; restore or remove it\)"):
        prepare([folder], str(out), tokenizer, **rules)
    done = {file: file.stat().st_mtime_ns for file in out.rglob("completions/*")}
    assert [file.name for file in done] == ["00000"]
    (out / "00001_00000_doc_shuffled.ds").write_bytes(b"left behind by a killed task")
    Path(shards[1]).unlink()
    manifest = prepare([folder], str(out), tokenizer, **rules)
    assert done == {file: file.stat().st_mtime_ns for file in done}
    assert manifest.sources == [shards[0], shards[2]]
    prepare([folder], str(tmp_path / "without"), tokenizer, **rules)
    read = lambda name: sorted(id for array in TokenFiles(tmp_path / name).arrays for id in array.tolist())
    assert read("out") == read("without")


def test_a_shard_restored_after_the_others_were_processed_without_it_is_rejected(tmp_path, shards, tokenizer):
    good, broken = Path(shards[0]).read_bytes(), Path(shards[2]).read_bytes()[:-10]
    Path(shards[2]).write_bytes(broken)
    out = str(tmp_path / "out")
    Path(shards[0]).write_bytes(good[:-10])
    with pytest.raises(UserError, match=r"0.jsonl.zst: can't be read"):
        prepare(shards, out, tokenizer)
    with pytest.raises(UserError, match=r"2.jsonl.zst: can't be read"):
        prepare(shards[1:], out, tokenizer)
    Path(shards[0]).write_bytes(good)
    with pytest.raises(UserError, match=r"different shards \(.*0.jsonl.zst has been added or removed since"):
        prepare(shards, out, tokenizer)


def peak_megabytes(shard, output, tokenizer):
    """Peak memory of a process that prepares the shard without subprocesses."""
    code = (
        "from codegen_jax.data.prepare import prepare\n"
        "from codegen_jax.data.tokenizer import load_tokenizer\n"
        f"prepare([{shard!r}], {str(output)!r}, load_tokenizer({str(tokenizer)!r}), filters='code', dedup='exact')\n"
        "print(next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) / 1e3)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_shard(tmp_path, texts, tokenizer):
    tokenizer.save(tmp_path / "tokenizer")
    peaks = {}
    for repeats in (20, 160):  # about 3 and 24 MB of text
        many = [f"# {number}\n{text}" for number in range(repeats) for text in texts]
        shard = write_shard(tmp_path / f"{repeats}.jsonl.zst", many)
        peaks[repeats] = peak_megabytes(shard, tmp_path / f"{repeats}", tmp_path / "tokenizer")
    assert peaks[160] < peaks[20] + 8, peaks


@pytest.mark.slow
def test_ray_writes_the_same_files(tmp_path, shards, tokenizer):
    ray = pytest.importorskip("ray", reason="needs the ray extra")
    prepare(shards, str(tmp_path / "local"), tokenizer, **ALL)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        options = {"mem_per_cpu_gb": 0.5}
        prepare(shards, str(tmp_path / "ray"), tokenizer, executor="ray", executor_options=options, **ALL)
        Path(shards[1]).write_bytes(b"broken")
        with pytest.raises(UserError, match=r"tokens: 1 of 3 tasks failed; see .*/logs/0_tokens/logs"):
            prepare(shards, str(tmp_path / "bad"), tokenizer, executor="ray", executor_options=options)
    finally:
        ray.shutdown()
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_slurm_passes_are_submitted_as_dependent_jobs(tmp_path, shards, tokenizer, monkeypatch):
    """A fake sbatch runs each job's tasks immediately and prints a job number, as the real one does."""
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        "#!/bin/bash\n"
        'echo "$*" >> "$(dirname "$0")/calls"\n'
        'last=$(sed -n "s/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p" "${@: -1}")\n'
        'for i in $(seq 0 "${last:-0}"); do\n'
        '  SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=localhost bash "${@: -1}" >> "$(dirname "$0")/out" 2>&1\n'
        "done\n"
        'echo "Submitted batch job $(wc -l < "$(dirname "$0")/calls")"\n'
    )
    scontrol = tmp_path / "bin/scontrol"
    scontrol.write_text("#!/bin/bash\necho localhost\n")
    for script in (sbatch, scontrol):
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    prepare(shards, str(tmp_path / "local"), tokenizer, **ALL)
    options = {"time": "1:00:00", "partition": "cpu", "with_srun": False}
    assert (
        prepare(shards, str(tmp_path / "slurm"), tokenizer, executor="slurm", executor_options=options, **ALL) is None
    )
    assert contents(tmp_path / "slurm") == contents(tmp_path / "local"), (tmp_path / "bin/out").read_text()
    assert "--dependency=afterok:" in (tmp_path / "bin/calls").read_text()


def test_unknown_executor_options_are_named(tmp_path, shards, tokenizer, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name)
    for executor, options in (("local", {"partition": "cpu"}), ("slurm", {"time": "1:00:00"})):
        with pytest.raises(UserError, match=r"executor_option: .*partition"):
            prepare(shards, str(tmp_path / executor), tokenizer, executor=executor, executor_options=options)


def test_slurm_without_sbatch_is_an_error(tmp_path, shards, tokenizer, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="executor: slurm: sbatch was not found"):
        prepare(shards, str(tmp_path / "out"), tokenizer, executor="slurm")
