"""The launchers, tested as far as possible without a cloud: linted, validated and run with fake cloud commands."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from codegen_jax.config_file import load_config
from codegen_jax.planning.slices import parse_slice
from codegen_jax.training.metrics import read_metrics
from tests.runs import tiny_run

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"


def stand_in(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("script", ["demo", "make_venv", "test", "launch_tpu_vm", "slurm.sbatch"])
def test_shellcheck_has_nothing_to_say(script):
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, SCRIPTS / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_jobset_runs_a_valid_job_on_the_whole_slice():
    jobset = yaml.safe_load((SCRIPTS / "jobset.yaml").read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, "spec": spec}
    kubernetes_validate.validate(whole, "1.31", strict=True)
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = math.prod(parse_slice("v4-512").shape)
    assert spec["parallelism"] == spec["completions"]
    assert spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
    assert int(topology[0]) * int(topology[1]) * int(topology[2]) == chips
    program, verb, config, *words = container["command"]
    assert (program, verb) == ("codegen-jax", "train")
    assert load_config(ROOT / config, words).distributed.coordinator == "auto"


SRUN = """
shift  # --kill-on-bad-exit=0
export SLURM_STEP_NODELIST=127.0.0.1,other SLURM_NTASKS=2
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit "${code:-0}"
"""


def sbatch(tmp_path, config_file, **environment):
    """Run the batch file as Slurm would, on this machine."""
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    (tmp_path / ".venv").exists() or (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    environment = os.environ | {"PATH": path, "SLURM_JOB_ID": str(os.getpid() % 4096)} | environment
    return subprocess.run(
        ["bash", SCRIPTS / "slurm.sbatch", config_file], cwd=tmp_path, env=environment, capture_output=True, text=True
    )


def test_the_slurm_batch_file_joins_its_tasks_into_one_run(tmp_path, token_folder):
    stand_in(tmp_path / "bin", "srun", SRUN)
    config = tiny_run(tmp_path / "run", token_folder)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.to_dict()))
    done = sbatch(tmp_path, "run.yaml", XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4")
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in read_metrics(config.output) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert "2 process(es)" in (tmp_path / "run/summary.md").read_text()


def test_the_slurm_batch_file_goes_back_into_the_queue_when_preempted_and_only_then(tmp_path):
    stand_in(tmp_path / "bin", "scontrol", 'echo "$@" >> scontrol.log')
    for code, expected in ((75, 0), (2, 2), (0, 0)):
        stand_in(tmp_path / "bin", "srun", f"exit {code}")
        assert sbatch(tmp_path, "run.yaml", SLURM_JOB_ID="7").returncode == expected
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"


GCLOUD = """
[ "${*: -2}" = "--worker all" ] || exit 9
case $4 in scp) cp "$5" "$WORKER/codegen_jax.tar.gz" ;; ssh) cd "$WORKER" && eval "$7" && wait ;; esac
"""
# the first run saves and stops, the second finishes
PYTHON3 = """
mkdir -p .venv/bin
printf '#!/bin/sh\\n' > .venv/bin/pip
printf '#!/bin/sh\\necho "$@" >> runs.log\\n[ "$(wc -l < runs.log)" -gt 1 ] || exit 75\\n' > .venv/bin/codegen-jax
chmod +x .venv/bin/*
"""


def test_the_tpu_vm_launch_installs_on_all_workers_and_starts_again_when_preempted(tmp_path):
    stand_in(tmp_path / "bin", "gcloud", GCLOUD)
    stand_in(tmp_path / "bin", "python3", PYTHON3)
    checkout, worker = tmp_path / "checkout", tmp_path / "worker"
    worker.mkdir()
    (checkout / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPTS / "launch_tpu_vm", checkout / "scripts")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(checkout)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    done = subprocess.run(
        [checkout / "scripts/launch_tpu_vm", "pod", "us-central2-b", "c.yaml", "--output", "gs://a/it's b"],
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "WORKER": str(worker)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (worker / "codegen_jax/scripts/launch_tpu_vm").exists()
    line = "train c.yaml --output gs://a/it's b --distributed.coordinator auto\n"
    assert (worker / "codegen_jax/runs.log").read_text() == 2 * line
