"""CodeGen models of transformers with random weights, and folders that contain them."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # none of these models is on the hub

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from tokenizers import ByteLevelBPETokenizer
from transformers import CodeGenConfig as HuggingFaceConfig
from transformers import CodeGenForCausalLM

from codegen_jax.data.tokenizer import BpeTokenizer

FORMS = ["safetensors", "sharded safetensors", "bin", "sharded bin"]


def peer(seed=0, dtype=torch.float32, **sizes) -> CodeGenForCausalLM:
    """A random network with large logits, biases other than 0 and scales other than 1."""
    sizes = dict(n_layer=2, n_embd=32, n_head=4, rotary_dim=4, vocab_size=300, n_positions=64) | sizes
    torch.manual_seed(seed)
    config = HuggingFaceConfig(
        **sizes, n_ctx=sizes["n_positions"], initializer_range=0.2, bos_token_id=0, eos_token_id=0
    )
    model = CodeGenForCausalLM(config).eval()
    with torch.no_grad():  # transformers initializes biases to 0 and scales to 1, which would hide mistakes
        for name, parameter in model.named_parameters():
            if "ln_" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.to(dtype)


def save(model, folder, form="safetensors", tokenizer=None, buffers=False):
    """Save a folder like those on the hub; `buffers` adds causal masks to the weights, as old files have them."""
    folder.mkdir(parents=True, exist_ok=True)
    if form == "safetensors":
        model.save_pretrained(folder)
    elif form == "sharded safetensors":
        model.save_pretrained(folder, max_shard_size="30KB")
    else:
        model.config.save_pretrained(folder)
        tensors = model.state_dict()
        if buffers:
            for i in range(model.config.n_layer):
                tensors[f"transformer.h.{i}.attn.causal_mask"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
                tensors[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
                tensors[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e9)
        if form == "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            split = split_torch_state_dict_into_shards(
                tensors, filename_pattern="pytorch_model{suffix}.bin", max_shard_size="30KB"
            )
            assert split.is_sharded
            for file, names in split.filename_to_tensors.items():
                torch.save({name: tensors[name] for name in names}, folder / file)
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    if tokenizer is not None:
        tokenizer.save(folder)
    return folder


def tiny_bpe(texts=("def f(x): return x",), vocab_size=270) -> BpeTokenizer:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=["<|endoftext|>"])
    return BpeTokenizer(tokenizer.to_str())


def state(model):
    """The model's state dict as NumPy arrays."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def logits(model, tokens, **kwargs):
    return model(torch.tensor(tokens), **kwargs).logits.float().numpy()
