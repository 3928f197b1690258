"""Training an adapter gives the losses of peft and torch's AdamW."""

import jax
import numpy as np
import peft
import pytest
import torch

from codegen_jax.config import AdapterConfig, CodeGenConfig, MeshConfig, OptimizerConfig, TrainingConfig
from codegen_jax.model.adapter import abstract_adapter
from codegen_jax.sharding import make_mesh
from codegen_jax.training.frozen import load_frozen
from codegen_jax.training.resolve import resolve_step
from codegen_jax.training.step import init_state, make_train_step
from codegen_jax.weights.adapter_layout import from_peft
from codegen_jax.weights.huggingface_layout import HuggingFaceWeights
from codegen_jax.weights.peft import read_peft
from tests.peers import peer, state

SIZES = dict(n_layer=2, n_embd=64, n_head=4, rotary_dim=8, vocab_size=97, n_positions=64)
STEPS = 20
RATE = 5e-3
SETTINGS = {
    "all linear layers": (AdapterConfig(rank=4, alpha=8.0), {"target_modules": "all-linear"}),
    "everything": (
        AdapterConfig(rank=4, alpha=8.0, rslora=True, targets=["all-linear", "lm_head"], trainable_tokens=[7, 90]),
        {
            "target_modules": ["qkv_proj", "out_proj", "fc_in", "fc_out", "lm_head"],
            "use_rslora": True,
            "trainable_token_indices": [7, 90],
        },
    ),
    "one layer": (
        AdapterConfig(rank=4, alpha=8.0, layers=[1], targets=["qkv_proj", "fc_out"]),
        {"target_modules": ["qkv_proj", "fc_out"], "layers_to_transform": [1]},
    ),
}


def rows():
    batches = np.random.default_rng(0).integers(0, 97, (STEPS, 4, 33)).astype(np.int32)
    batches[:, :, ::6] = 7
    return batches


@pytest.mark.parametrize(("adapter", "settings"), SETTINGS.values(), ids=SETTINGS)
def test_twenty_steps_have_the_losses_of_peft_and_adamw(adapter, settings, tmp_path):
    model = CodeGenConfig(**SIZES, dtype="float32")
    theirs = peft.get_peft_model(peer(0, **SIZES), peft.LoraConfig(r=4, lora_alpha=8, **settings))
    theirs.save_pretrained(tmp_path)
    run = resolve_step(
        make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]),
        model,
        OptimizerConfig(RATE, RATE, 0, weight_decay=0.01),
        TrainingConfig(steps=STEPS, batch_size=4),
        sequence_length=32,
        adapter=adapter,
    )
    frozen, _ = load_frozen(run, HuggingFaceWeights(state(peer(0, **SIZES)), model))
    start = from_peft(read_peft(tmp_path, model), model, adapter)
    assert jax.tree.map(np.shape, start) == jax.tree.map(np.shape, abstract_adapter(model, adapter))
    losses = []
    with jax.set_mesh(run.mesh):
        ours, step = init_state(run, start, frozen), make_train_step(run)
        for batch in rows():
            ours, metrics = step(ours, batch)
            losses.append(float(metrics["cross_entropy"]))
    np.testing.assert_allclose(losses, losses_of_peft(theirs), rtol=1e-5)
    assert losses[-1] < losses[0] - 0.05


def losses_of_peft(model):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses = []
    for batch in rows():
        ids = torch.tensor(batch, dtype=torch.long)
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
