"""The launch scripts, tested without a cloud: linted, validated and run with fake cloud commands."""

import math
import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from codegen_jax.config_file import load_config, shipped_config
from codegen_jax.planning.slices import parse_slice
from codegen_jax.training.metrics import read_metrics
from tests.runs import tiny_run

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"


def write_fake_command(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("script", ["demo", "make_venv", "test", "test_slow", "launch_tpu_vm", "slurm.sbatch"])
def test_shellcheck_reports_nothing(script):
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, SCRIPTS / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_jobset_runs_a_valid_job_on_the_whole_slice():
    jobset = yaml.safe_load((SCRIPTS / "jobset.yaml").read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, "spec": spec}
    kubernetes_validate.validate(manifest, "1.31", strict=True)
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = math.prod(parse_slice("v4-512").shape)
    assert spec["parallelism"] == spec["completions"]
    assert spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
    assert int(topology[0]) * int(topology[1]) * int(topology[2]) == chips
    verb, name, *words = container["args"]
    config = shipped_config(name)
    assert verb == "train" and config
    assert load_config(config, words).distributed.coordinator == "auto"
    assert "command" not in container and dockerfile("tpu")["ENTRYPOINT"] == '["codegen-jax"]'


def dockerfile(host: str) -> dict[str, str]:
    """The instructions of a Dockerfile; of those that occur more than once, the last."""
    lines = (ROOT / f"docker/{host}.Dockerfile").read_text().splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line[:1].isupper())


@pytest.mark.parametrize("host", ["tpu", "gpu"])
def test_hadolint_reports_nothing(host):
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / f"docker/{host}.Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("host", ["tpu", "gpu"])
def test_an_image_installs_existing_extras_and_copies_every_file_that_the_package_needs(host):
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(dockerfile(host)["ARG"].removeprefix("EXTRAS=").split(",")) <= set(setup["options.extras_require"])
    copied = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    read = setup["metadata"]["long_description"].removeprefix("file: "), setup["metadata"]["license_files"]
    assert copied == {"setup.py", "setup.cfg", "pyproject.toml", "codegen_jax", "configs", *read}


SRUN = """
shift  # --kill-on-bad-exit=0
export SLURM_STEP_NODELIST=127.0.0.1,other SLURM_NTASKS=2
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit "${code:-0}"
"""


def sbatch(tmp_path, config_file, **environment):
    """Run the batch script as Slurm would, on this machine."""
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    (tmp_path / ".venv").exists() or (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    environment = os.environ | {"PATH": path, "SLURM_JOB_ID": str(os.getpid() % 4096)} | environment
    return subprocess.run(
        ["bash", SCRIPTS / "slurm.sbatch", config_file], cwd=tmp_path, env=environment, capture_output=True, text=True
    )


def test_slurm_tasks_join_one_run(tmp_path, token_folder):
    write_fake_command(tmp_path / "bin", "srun", SRUN)
    config = tiny_run(tmp_path / "run", token_folder)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.to_dict()))
    done = sbatch(tmp_path, "run.yaml", XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4")
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in read_metrics(config.output) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert "2 process(es)" in (tmp_path / "run/summary.md").read_text()


def test_slurm_job_is_requeued_only_if_preempted(tmp_path):
    write_fake_command(tmp_path / "bin", "scontrol", 'echo "$@" >> scontrol.log')
    for code, expected in ((75, 0), (2, 2), (0, 0)):
        write_fake_command(tmp_path / "bin", "srun", f"exit {code}")
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


def test_tpu_vm_launch_installs_on_all_workers_and_restarts_after_preemption(tmp_path):
    write_fake_command(tmp_path / "bin", "gcloud", GCLOUD)
    write_fake_command(tmp_path / "bin", "python3", PYTHON3)
    checkout, worker = tmp_path / "checkout", tmp_path / "worker"
    worker.mkdir()
    (checkout / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPTS / "launch_tpu_vm", checkout / "scripts")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(checkout)]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], check=True)
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
