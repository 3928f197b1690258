"""The private parts of libraries listed in docs/architecture.md still exist and have not changed."""

import inspect

import jax
import orbax.checkpoint as ocp
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import minhash
from datatrove.pipeline.tokens.tokenizer import DocumentTokenizer, TokenizedFile
from jax._src import distributed
from orbax.checkpoint import type_handlers
from orbax.checkpoint.utils import TMP_DIR_SUFFIX
from tensorboardX.event_file_writer import EventsWriter

from codegen_jax.weights.run_folder import COMPLETE, UNFINISHED


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_jaxs_global_state_has_the_coordinators_client():
    # its behavior is tested in test_processes.py, with real processes that fail together
    assert distributed.global_state.client is None


def test_orbax_has_the_method_for_writing_arrays_that_we_override():
    assert parameters(type_handlers.NumpyHandler._open_and_write) == ["self", "value", "tspec", "ts_context"]
    assert inspect.iscoroutinefunction(type_handlers.NumpyHandler._open_and_write)


def test_orbax_uses_the_file_names_that_we_rely_on(tmp_path):
    args = ocp.args.Composite(
        params=ocp.args.StandardSave({"head": jax.numpy.ones(4)}), run=ocp.args.JsonSave({"a": 1})
    )
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(3, args=args)
        manager.wait_until_finished()
    assert (tmp_path / "checkpoints/3" / COMPLETE).exists()
    assert (tmp_path / "checkpoints/3/run/metadata").read_text() == '{"a": 1}'
    assert (tmp_path / "checkpoints/3/params/manifest.ocdbt").exists()
    assert f"*{TMP_DIR_SUFFIX}*" == UNFINISHED


def test_datatrove_has_the_methods_that_we_use_and_override():
    assert parameters(LocalPipelineExecutor._run_for_rank) == ["self", "rank", "local_rank", "node_rank"]
    assert parameters(DocumentTokenizer.write_unshuffled) == ["self", "data", "filename"]
    assert parameters(TokenizedFile.write_bytes) == ["self", "tk_bytes", "doc_ends"]
    assert 'for dup_file in tqdm(dup_files, desc="' in inspect.getsource(minhash.MinhashDedupCluster.run)


def test_tensorboardx_has_an_event_writer_without_a_thread():
    assert parameters(EventsWriter.write_event) == ["self", "event"]
    assert {"flush", "close"} <= set(dir(EventsWriter))
