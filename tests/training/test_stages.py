"""The paper's three stages NL, Multi and Mono in sequence, each killed midway and resumed on another mesh."""

import json
import time

import jax
import numpy as np
import pytest

from codegen_jax.config import MeshConfig
from codegen_jax.data.batches import Batches
from codegen_jax.data.prepare import prepare
from codegen_jax.data.sources import make_order, open_sources
from codegen_jax.data.tokenizer import load_tokenizer
from codegen_jax.sharding import make_mesh
from codegen_jax.training.loop import train
from codegen_jax.training.metrics import read_metrics
from codegen_jax.training.step import batch_sharding
from codegen_jax.weights.checkpoint_format import load_run
from codegen_jax.weights.run_folder import find_checkpoint
from tests.peers import tiny_bpe
from tests.processes import start
from tests.runs import tiny_run

STAGES = {"nl": {}, "multi": {"filters": "code", "dedup": "exact"}, "mono": {"filters": "code", "dedup": "exact"}}
MESHES = [MeshConfig(1, 8, 1), MeshConfig(8, 1, 1), MeshConfig(2, 2, 2)]


@pytest.fixture(scope="module")
def data(tmp_path_factory, texts):
    """Token files per stage: prose and code, duplicated code, Python. NL's tokenizer has no whitespace tokens."""
    folder = tmp_path_factory.mktemp("stages")
    tiny_bpe(texts).save(folder / "tokenizer")
    corpora = {
        "nl": [("Web", "", "some prose about programs\n" * 400), *(("Github", "a.py", text) for text in texts)],
        "multi": [("C", "a.c", text) for text in texts] * 2 + [("Text", "a.txt", "not code\n")],
        "mono": [("Python", "a.py", text) for text in texts],
    }
    for stage, rules in STAGES.items():
        lines = [json.dumps({"text": t, "meta": {"pile_set_name": s, "path": p}}) for s, p, t in corpora[stage]]
        (folder / f"{stage}.jsonl").write_text("\n".join(lines))
        tokenizer = load_tokenizer(folder / "tokenizer", whitespace_tokens=stage != "nl")
        prepare([str(folder / f"{stage}.jsonl")], str(folder / stage), tokenizer, **rules)
    return folder


def run(root, data, stage, mesh):
    previous = {"multi": "nl", "mono": "multi"}.get(stage)
    return tiny_run(
        root / stage,
        data / stage,
        init_from=str(root / previous) if previous else None,
        mesh=mesh,
    )


def losses(output):
    return {line["step"]: line["loss"] for line in read_metrics(output)}


def kill_after_first_checkpoint(config, file):
    """Train in a separate process and kill it after its first save; the pauses make sure that it has steps left."""
    (process,) = start(config, file, pause=0.5)
    while find_checkpoint(config.output) is None:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()


def test_stages_killed_and_resumed_on_other_meshes_match_uninterrupted_ones(tmp_path, data):
    for number, stage in enumerate(STAGES):
        train(run(tmp_path / "whole", data, stage, MESHES[0]))
        kill_after_first_checkpoint(run(tmp_path / "killed", data, stage, MESHES[number]), tmp_path / "a.yaml")
        assert int(find_checkpoint(tmp_path / "killed" / stage).name) < 6
        resumed = run(tmp_path / "killed", data, stage, MESHES[number - 1])
        train(resumed)
        actual, expected = losses(tmp_path / "killed" / stage), losses(tmp_path / "whole" / stage)
        assert list(actual) == [1, 2, 3, 4, 5, 6]
        np.testing.assert_allclose([actual[step] for step in expected], list(expected.values()), rtol=1e-5)
        sources, _ = open_sources(resumed.data)
        batches = [
            Batches([sources[0].rows], make_order(resumed, sources), batch_sharding(make_mesh(mesh)))(5)
            for mesh in MESHES
        ]
        assert len({np.asarray(jax.device_get(batch)).tobytes() for batch in batches}) == 1
    tokenizers = [load_run(find_checkpoint(tmp_path / "killed" / stage)).tokenizer for stage in STAGES]
    assert [t.vocab_size for t in tokenizers] == [tokenizers[0].vocab_size + extra for extra in (0, 38, 38)]
