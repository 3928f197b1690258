"""Messages about the weights that a run starts from: a different architecture or tokenizer."""

import dataclasses

import numpy as np
import pytest
import yaml

from codegen_jax.config_file import dump_config, load_config
from codegen_jax.data.tokens import TokenFiles
from codegen_jax.errors import UserError
from codegen_jax.training.loop import find_initial_weights, is_same_tokenizer
from codegen_jax.weights.base import Index, Weights
from codegen_jax.weights.checkpoint_writer import write_checkpoint
from codegen_jax.weights.open import open_model
from tests.peers import tiny_bpe
from tests.runs import tiny_run


class Zeros(Weights):
    def dtype(self, name: str) -> np.dtype:
        return np.dtype("float32")

    def read(self, name: str, index: Index) -> np.ndarray:
        return np.zeros([part.stop - part.start for part in index], "float32")


@pytest.mark.parametrize(
    "changes",
    [{"n_layer": 1}, {"head_dim": 16}, {"n_head": 2, "head_dim": 0}, {"layer_norm_epsilon": 1e-6, "vocab_size": 640}],
    ids=str,
)
def test_suggested_model_section_matches_the_weights_and_keeps_free_fields(tmp_path, changes):
    theirs = dataclasses.replace(tiny_run().model, **changes, dtype="bfloat16", embedding_bias=True)
    write_checkpoint(Zeros("", theirs, None), tmp_path / "weights", lambda _: None)
    free = {"n_positions": 64, "attention": "xla"}
    config = tiny_run(init_from=str(tmp_path / "weights"), model={"n_layer": 5, **free})
    with pytest.raises(
        UserError, match=r"^model: .* in init_from has a different architecture; use model: \{.*\}$"
    ) as error:
        find_initial_weights(config)
    suggested = "model:" + str(error.value).rpartition("model:")[2]
    head_dim = {"head_dim": 16} if changes.get("head_dim") else {}
    shape = {name: value for name, value in changes.items() if name != "head_dim"}
    expected = {"n_layer": 2, "n_embd": 32, "n_head": 4, "rotary_dim": 4, "vocab_size": 512, "dtype": "float32"}
    assert yaml.safe_load(suggested) == {"model": expected | free | shape | head_dim}
    others = yaml.safe_load(dump_config(config))
    del others["model"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(others) + suggested)
    weights = find_initial_weights(load_config(tmp_path / "run.yaml"))
    assert weights is not None and weights.config == theirs


def test_different_tokenizer_of_token_files_gives_a_warning(tmp_path, token_folder, tokenizer, texts, caplog):
    files, network, other = TokenFiles(token_folder), tiny_run().model, tiny_bpe(texts, 400)
    for name, theirs in (("same", tokenizer), ("other", other), ("without", None)):
        write_checkpoint(Zeros("", network, theirs), tmp_path / name, lambda _: None)
        assert is_same_tokenizer(open_model(str(tmp_path / name)), tokenizer, files) == (name != "other")
    (message,) = (record.getMessage() for record in caplog.records if record.name.startswith("codegen_jax"))
    named = (tmp_path / "other", other.fingerprint, token_folder, tokenizer.fingerprint)
    assert message.startswith("init_from: ") and all(str(name) in message for name in named)
