"""Runs that train an adapter: what they save, how they resume, and that everything else reads the adapter."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import peft
import pytest
import torch
from safetensors.numpy import load_file
from transformers import CodeGenForCausalLM

import codegen_jax
from codegen_jax.config import MeshConfig
from codegen_jax.conversion.convert import convert
from codegen_jax.data.infill import with_infill
from codegen_jax.data.prepare import prepare
from codegen_jax.errors import UserError
from codegen_jax.training.loop import train
from codegen_jax.weights.open import open_adapter, open_model
from tests.conftest import write_shard
from tests.processes import finish, start
from tests.runs import tiny_run

ADAPTER = {"rank": 4, "alpha": 8.0}


def run_of(output, tokens, base, steps=6, adapter=(), **sections):
    sections = {"training": {"steps": steps, "sample_prompts": ["def"], "sample_tokens": 4}, **sections}
    data = {"validation": str(tokens)}
    return tiny_run(output, tokens, init_from=str(base), data=data, adapter=ADAPTER | dict(adapter), **sections)


@pytest.fixture(scope="module")
def base(tmp_path_factory, token_folder):
    """A model that was trained for a few steps, in a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("base")
    train(tiny_run(folder / "run", token_folder))
    convert(str(folder / "run"), str(folder / "hf"), to="hf")
    return folder / "hf"


@pytest.fixture(scope="module")
def run(tmp_path_factory, token_folder, base):
    """The output folder of a run of six steps."""
    output = tmp_path_factory.mktemp("adapter") / "run"
    train(run_of(output, token_folder, base))
    return output


def arrays_of(folder):
    adapter = open_adapter(str(folder), tiny_run().model)
    return {name: (update.a, update.b) for name, update in adapter.updates.items()}


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, arrays_of(first), arrays_of(second))


def peft_logits(base, adapter, ids):
    model = CodeGenForCausalLM.from_pretrained(base)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, adapter).eval()(torch.tensor([ids])).logits[0].numpy()


def test_checkpoints_contain_the_adapter_only(run):
    (newest,) = [path for path in (run / "checkpoints").iterdir() if path.name == "6"]
    stored = {
        name: [leaf.shape for leaf in jax.tree.leaves(ocp.StandardCheckpointHandler().metadata(newest / name).tree)]
        for name in ("params", "optimizer")
    }
    sizes = {name: sum(map(math.prod, shapes)) for name, shapes in stored.items()}
    count = sum(a.size + b.size for a, b in arrays_of(run).values())
    scalars = 10  # counters and the guard's statistics
    assert sizes["params"] == count < 0.1 * tiny_run().model.n_params
    assert 2 * count <= sizes["optimizer"] < 2 * count + scalars


def test_training_lowers_the_loss(run):
    losses = [
        json.loads(line)["validation_loss"] for line in (run / "metrics.jsonl").open() if "validation_loss" in line
    ]
    assert losses[-1] < losses[0]


def test_a_run_is_the_same_on_another_mesh_and_with_an_interruption(run, tmp_path, token_folder, base):
    mesh = dataclasses.replace(tiny_run().mesh, data=2, fsdp=2, tensor=2)
    train(run_of(tmp_path / "run", token_folder, base, steps=4))
    train(run_of(tmp_path / "run", token_folder, base))
    assert_same(run, tmp_path / "run")
    train(run_of(tmp_path / "mesh", token_folder, base, mesh=mesh))
    for name, (a, b) in arrays_of(run).items():
        for mine, other in zip((a, b), arrays_of(tmp_path / "mesh")[name], strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-3, atol=2e-5, err_msg=name)


def test_two_processes_train_the_adapter_that_one_does(run, tmp_path, token_folder, base):
    config = run_of(tmp_path / "run", token_folder, base, mesh=MeshConfig(2, 1, 1))
    assert [code for code, _ in finish(start(config, tmp_path / "a.yaml", count=2, devices=1))] == [0, 0]
    for name, (a, b) in arrays_of(run).items():
        for mine, other in zip((a, b), arrays_of(tmp_path / "run")[name], strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-3, atol=2e-5, err_msg=name)


def test_every_reader_gives_the_same_model(run, base, tmp_path):
    ids = list(range(40))
    adapter = tmp_path / "peft"
    convert(str(run), str(adapter), to="peft")
    expected = peft_logits(base, adapter, ids)
    scale = np.abs(expected).max()
    log_p = torch.log_softmax(torch.tensor(expected), -1).numpy()[range(len(ids) - 1), ids[1:]]
    models = {
        "the run": codegen_jax.load(run),
        "model and run": codegen_jax.load(base, adapters=[run]),
        "model and PEFT folder": codegen_jax.load(base, adapters=[adapter]),
    }
    for to in ("hf", "jax"):
        convert(str(base), str(tmp_path / to), to=to, adapters=[str(adapter)], proof="numpy" if to == "hf" else None)
        models[f"merged, to {to}"] = codegen_jax.load(tmp_path / to)
    for name, model in models.items():
        np.testing.assert_allclose(model.logprobs(np.array([ids]))[0][0], log_p, atol=2e-5 * scale, err_msg=name)


def test_a_merged_model_keeps_the_dtype_of_its_base(run, base, tmp_path):
    convert(str(base), str(tmp_path / "half"), to="hf", dtype="float16")
    convert(str(tmp_path / "half"), str(tmp_path / "merged"), to="hf", adapters=[str(run)])
    whole = (slice(0, 2), slice(0, 32), slice(0, 128))
    exact = open_model(str(tmp_path / "half"), adapters=[str(run)]).read("blocks.fc_in", whole)
    found = open_model(str(tmp_path / "merged")).read("blocks.fc_in", whole)
    assert (exact.dtype, found.dtype) == (np.float32, np.float16)
    np.testing.assert_array_equal(found, exact.astype(np.float16))


def test_a_merge_into_16_bits_can_be_verified(run, base, tmp_path):
    convert(str(base), str(tmp_path / "half"), to="hf", dtype="bfloat16")
    found = convert(str(tmp_path / "half"), str(tmp_path / "merged"), to="hf", adapters=[str(run)], proof="numpy")
    assert found.agreement is not None and found.dtypes == ["bfloat16"]


def test_a_run_keeps_its_own_context_and_dtype(base, token_folder, tmp_path):
    model = {"n_positions": 4096, "dtype": "bfloat16"}
    train(run_of(tmp_path / "run", token_folder, base, 1, model=model, training={"steps": 1}))
    found = codegen_jax.load(tmp_path / "run").config
    assert (found.n_positions, found.dtype) == (4096, "bfloat16")


def test_samples_during_training_are_those_of_the_merged_model(run):
    sample = json.loads((run / "samples.jsonl").read_text().splitlines()[-1])
    assert sample["completion"] == codegen_jax.load(run).generate("def", max_new_tokens=4, temperature=0)


def test_the_exported_config_names_the_base_and_the_settings(run, base, tmp_path):
    convert(str(run), str(tmp_path / "peft"), to="peft", dtype="bfloat16")
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert (config["r"], config["lora_alpha"]) == (4, 8.0)
    assert all(value.dtype == "bfloat16" for value in load_file(tmp_path / "peft/adapter_model.safetensors").values())


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_run_below_which_weights_are_quantized_resumes_and_merges_into_the_original_weights(
    kind, base, token_folder, tmp_path
):
    settings = {"adapter": {"quantize": kind}, "mesh": MeshConfig(8, 1, 1)}
    train(run_of(tmp_path / "run", token_folder, base, 2, **settings))
    train(run_of(tmp_path / "run", token_folder, base, 4, **settings))
    train(run_of(tmp_path / "whole", token_folder, base, 4, **settings))
    assert_same(tmp_path / "run", tmp_path / "whole")
    whole = (slice(0, 2), slice(0, 32), slice(0, 128))
    original = open_model(str(base)).read("blocks.fc_in", whole)
    update = open_model(str(tmp_path / "run")).read("blocks.fc_in", whole) - original
    ranks = np.linalg.matrix_rank(update, tol=1e-5)
    assert (ranks > 0).all() and (ranks <= 4).all()


@pytest.mark.parametrize("source", ["run", "peft"])
def test_a_run_can_go_on_with_an_adapter(source, run, base, token_folder, tmp_path):
    start = run
    if source == "peft":
        start = tmp_path / "peft"
        convert(str(run), str(start), to="peft")
    still = {"learning_rate": 0.0, "end_learning_rate": 0.0}
    adapter = {"init_from": str(start)}
    train(run_of(tmp_path / "next", token_folder, base, 1, adapter, optimizer=still))
    assert_same(run, tmp_path / "next")


def test_a_run_can_start_from_merged_adapters(run, base, token_folder, tmp_path):
    still = {"learning_rate": 0.0, "end_learning_rate": 0.0}
    config = tiny_run(
        tmp_path / "full",
        token_folder,
        init_from=str(base),
        init_adapters=[str(run)],
        optimizer=still,
        training={"steps": 1},
    )
    train(config)
    merged, full = open_model(str(run)), open_model(str(tmp_path / "full"))
    whole = (slice(0, 2), slice(0, 32), slice(0, 128))
    np.testing.assert_array_equal(merged.read("blocks.fc_in", whole), full.read("blocks.fc_in", whole))


def test_other_weights_below_an_adapter_are_refused_on_resume(base, token_folder, tmp_path):
    train(tiny_run(tmp_path / "other", token_folder, seed=1))
    (tmp_path / "model").symlink_to(base)
    train(run_of(tmp_path / "run", token_folder, tmp_path / "model", 2))
    (tmp_path / "model").unlink()
    (tmp_path / "model").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match=r"^init_from: the model has other weights or another tokenizer"):
        train(run_of(tmp_path / "run", token_folder, tmp_path / "model", 4))


def test_special_tokens_of_infilling_are_trained(base, texts, tmp_path, tokenizer):
    infill = with_infill(tokenizer, "psm")
    new = list(range(tokenizer.vocab_size, infill.vocab_size))
    assert len(new) == 3
    prepare([write_shard(tmp_path / "a.jsonl", texts)], str(tmp_path / "tokens"), tokenizer, fim_rate=0.5)
    wide = {"vocab_size": 640}
    train(tiny_run(tmp_path / "base", tmp_path / "tokens", model=wide, training={"steps": 1}))
    # a base whose tokenizer lacks the special tokens
    convert(str(tmp_path / "base"), str(tmp_path / "plain"), tokenizer=tokenizer)
    config = run_of(tmp_path / "run", tmp_path / "tokens", tmp_path / "plain", 3, model=wide)
    train(config)
    adapter = open_adapter(str(tmp_path / "run"), config.model)
    rows = adapter.rows["transformer.wte.weight"]
    assert list(rows.ids) == new
    before = open_model(str(tmp_path / "plain")).read("embedding", (slice(new[0], new[-1] + 1), slice(0, 32)))
    assert (rows.values != before).any(axis=1).all()
    assert codegen_jax.load(tmp_path / "run").tokenizer.vocab_size == infill.vocab_size
    refused = run_of(tmp_path / "no", tmp_path / "tokens", tmp_path / "plain", 3, {"trainable_tokens": []}, model=wide)
    with pytest.raises(UserError, match=r"^adapter.trainable_tokens: must include \[512, 513, 514\]"):
        train(refused)


def test_an_adapter_is_not_merged_into_other_weights_than_it_was_trained_on(base, token_folder, tmp_path):
    train(tiny_run(tmp_path / "other", token_folder, seed=1))
    (tmp_path / "model").symlink_to(base)
    train(run_of(tmp_path / "run", token_folder, tmp_path / "model", 1))
    (tmp_path / "model").unlink()
    (tmp_path / "model").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match=r"has other weights than when this adapter was trained; give .* --adapter"):
        open_model(str(tmp_path / "run"))


def test_adapters_on_top_of_adapters_are_used_together_only(run, base, token_folder, tmp_path):
    config = run_of(tmp_path / "second", token_folder, base, 1, init_adapters=[str(run)])
    train(config)
    open_model(str(tmp_path / "second"))
    with pytest.raises(UserError, match=r"was trained on top of other adapters \(init_adapters: "):
        open_adapter(str(tmp_path / "second"), config.model)
    with pytest.raises(UserError, match=r"on top of other adapters, which PEFT would not load"):
        convert(str(tmp_path / "second"), str(tmp_path / "peft"), to="peft")
    adapter = {"init_from": str(tmp_path / "second")}
    train(run_of(tmp_path / "third", token_folder, base, 1, adapter, init_adapters=[str(run)]))
    convert(str(base), str(tmp_path / "half"), to="hf", dtype="float16")
    half = run_of(tmp_path / "fourth", token_folder, tmp_path / "half", 1, init_adapters=[str(run)])
    train(half)
    assert convert(str(tmp_path / "fourth"), str(tmp_path / "merged"), to="hf").dtypes == ["float16"]


def test_a_resumed_run_does_not_need_the_adapter_with_which_it_began(run, base, token_folder, tmp_path):
    shutil.copytree(run, tmp_path / "start")
    adapter = {"init_from": str(tmp_path / "start")}
    train(run_of(tmp_path / "next", token_folder, base, 1, adapter))
    shutil.rmtree(tmp_path / "start")
    train(run_of(tmp_path / "next", token_folder, base, 2, adapter))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 2}, r"^adapter.rank: is 2, but .* has 4$"),
        ({"alpha": 4.0}, r"^adapter.alpha: gives updates a factor of 1, but .* has 2; set"),
        ({"targets": ["qkv_proj"]}, r"^adapter.targets: .* has an update of transformer.h.0.attn.out_proj"),
        ({"layers": [1]}, r"^adapter.targets: .* has an update of transformer.h.0"),
        ({"targets": ["all-linear", "lm_head"]}, r"^adapter.targets: .* lacks the update of lm_head"),
        ({"trainable_tokens": [3]}, r"^adapter.trainable_tokens: are \[3\], but .* has \[\]"),
    ],
)
def test_an_adapter_with_other_settings_is_refused(settings, message, run, base, token_folder, tmp_path):
    config = run_of(tmp_path / "next", token_folder, base, 1, {"init_from": str(run)} | settings)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not (tmp_path / "next").exists()
