"""codegen-jax doctor against what other sources say about this installation and machine."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from codegen_jax import compilation, doctor
from codegen_jax.evaluation.sandbox_layers import choose_layer

ROOT = Path(__file__).parents[2]
SECRETS = {"HF_TOKEN": "hf_secret", "JAX_API_KEY": "hf_secret", "HF_ENDPOINT": "https://me:hf_secret@127.0.0.1/hub"}


def run(*words, **environment):
    """The command's output; it has to succeed without a traceback."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "HF_"))}
    result = subprocess.run(
        [sys.executable, "-P", "-m", "codegen_jax", "doctor", *words],
        capture_output=True,
        text=True,
        env=known | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment,
    )
    assert result.returncode == 0 and result.stderr == "", result.stderr
    return result.stdout


def distribution(folder, name, version, *lines):
    """Write the metadata of an installed distribution."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("\n".join([f"Name: {name}", f"Version: {version}", *lines]) + "\n")


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """What it reports with eight devices, its own cache folders and secrets in the environment."""
    folder = tmp_path_factory.mktemp("caches")
    (folder / "compiled/inner").mkdir(parents=True)
    (folder / "compiled/inner/a").write_bytes(bytes(15_000_000))
    (folder / "compiled/b").write_bytes(bytes(5_000_000))
    (folder / "compiled/link").symlink_to(folder / "compiled/b")
    found = run(
        "--json",
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
        JAX_COMPILATION_CACHE_DIR=str(folder / "compiled"),
        HF_HOME=str(folder / "none"),
        HF_HUB_OFFLINE="1",
        **SECRETS,
    )
    assert "hf_secret" not in found
    return json.loads(found)


def test_doctor_reports_the_machine(facts):
    assert facts["python"] == f"{platform.python_version()}, {sys.executable}"
    assert facts["platform"] == platform.platform()
    assert facts["cpus"].startswith(f"{os.cpu_count()}, {len(os.sched_getaffinity(0))} usable")
    total = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    assert facts["memory"].startswith(f"{total:.1f} GiB, ")
    assert facts["sandbox"] == ", ".join(choose_layer().description)


def test_doctor_reports_the_backend_and_its_devices(facts):
    assert facts["backend"].startswith("cpu") and facts["devices"] == "cpu x 8; processes: 1"
    assert "platforms" not in facts  # set by this test, not by the command


def test_doctor_reports_the_version_of_each_dependency(facts):
    names = {line.split(">")[0].split(";")[0].split("[")[0] for line in importlib.metadata.requires("codegen_jax")}
    assert {"jax", "jaxlib", "flax", "datatrove"} <= facts["dependencies"].keys() <= names | {"jaxlib"}
    assert facts["dependencies"] == {name: importlib.metadata.version(name) for name in facts["dependencies"]}


def test_doctor_reports_caches_and_free_space(facts):
    assert facts["caches"]["compiled programs"].endswith("compiled, 2 file(s), 0.02 GB")
    assert facts["caches"]["hub"].endswith("none/hub, does not exist")
    assert facts["hub"] == "offline, https://set@127.0.0.1/hub"
    total = f" of {shutil.disk_usage(os.getcwd()).total / 1e9:.1f} GB"
    assert facts["free disk"][os.getcwd()].endswith(total)


def test_doctor_reports_variables_without_secrets(facts):
    assert facts["environment"]["XLA_FLAGS"] == "--xla_force_host_platform_device_count=8"
    shown = {name: facts["environment"][name] for name in SECRETS}
    assert shown == {"HF_TOKEN": "set", "JAX_API_KEY": "set", "HF_ENDPOINT": "https://set@127.0.0.1/hub"}


def test_a_broken_installation_is_reported_with_the_remedy(tmp_path):
    """A package with other metadata and a JAX that cannot be imported come first on the path."""
    distribution(
        tmp_path,
        "codegen_jax",
        "0.1.0",
        "Requires-Dist: old>=2",
        'Requires-Dist: elsewhere>=1; sys_platform == "none"',
        "Provides-Extra: good",
        'Requires-Dist: old[more]; extra == "good"',
        "Provides-Extra: poor",
        'Requires-Dist: missing>=3; extra == "poor"',
    )
    distribution(tmp_path, "old", "1.5", "Provides-Extra: more", 'Requires-Dist: deep; extra == "more"')
    distribution(tmp_path, "deep", "7")
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax/__init__.py").write_text("raise ImportError('no jaxlib\\nhere')")
    lines = run(PYTHONPATH=f"{tmp_path}:{ROOT}").splitlines()
    assert "backend       failed: ImportError: no jaxlib here" in lines
    assert "  old     1.5, requires >=2" in lines and not any("elsewhere" in line for line in lines)
    assert "  good  complete: old 1.5, deep 7" in lines
    assert "  poor  incomplete: missing not installed, requires >=3; pip install 'codegen_jax[poor]'" in lines


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, sys; sys.stderr.write('F123 no chip\\n'); os._exit(6)", "failed with exit code 6: F123 no chip"),
        ("import time; time.sleep(1000)", "failed: did not start within 1 s"),
    ],
)
def test_a_backend_that_crashes_or_hangs_is_reported(tmp_path, monkeypatch, code, reason):
    (tmp_path / "jax.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor.devices(seconds=1) == {"backend": reason}


def test_a_fact_that_cannot_be_determined_is_replaced_by_an_error_message(monkeypatch):
    def fail():
        raise OSError("gone\naway")

    for name in ("devices", "codegen_jax", "cpus", "memory", "extras", "hub_cache", "free_disk"):
        monkeypatch.setattr(doctor, name, fail)
    facts = doctor.gather({})
    failure = "failed: OSError: gone away"
    assert facts["codegen_jax"] == facts["cpus"] == facts["memory"] == facts["caches"]["hub"] == failure
    assert facts["unknown"] == facts["extras"]["unknown"] == facts["free disk"]["unknown"] == failure


def test_the_limits_of_a_control_group_and_its_ancestors_are_read(tmp_path):
    (tmp_path / "own").write_text("1:cpu:/ignored\n0::/a/b\n")
    for folder, limit in (("a/b", "max"), ("a", "200"), ("", "300")):
        (tmp_path / "fs" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / folder / "memory.max").write_text(f"{limit}\n")
    assert doctor.control_group("memory.max", "none", str(tmp_path / "fs"), str(tmp_path / "own")) == ["200", "300"]


def test_doctor_measures_the_cache_that_the_command_uses(monkeypatch):
    chosen = {}
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", "", raising=False)
    monkeypatch.setattr(jax.config, "update", chosen.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    compilation.use_compilation_cache()
    folder = Path(doctor.compilation_cache()).expanduser()
    assert Path(chosen["jax_compilation_cache_dir"]).is_relative_to(folder)


def test_measuring_a_large_cache_stops_at_a_time_limit(tmp_path):
    (tmp_path / "a").write_text("a")
    assert doctor.cache(str(tmp_path), seconds=-1) == f"{tmp_path}, at least 0 file(s), 0.00 GB"
