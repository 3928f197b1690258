"""Recognize other programs' weights by file or tensor names; the messages name the program and the remedy."""

import re
from collections.abc import Iterable
from pathlib import Path

QUANTIZED = "quantized weights, which are not supported; use the original, unquantized model"
FILES = {
    "adapter_config.json adapter_model.*": "a PEFT adapter, which is only a part of a model; give its base model "
    "instead, and this folder with --adapter",
    "*.gguf": "weights for llama.cpp (GGUF), which are not supported; use the Hugging Face folder that they were "
    "converted from",
    "quantize_config.json quant_config.json gptq_model*": QUANTIZED,
    "flax_model*.msgpack": "Flax weights, which are not supported; load them in transformers 4 (from_flax=True) and "
    "save them as safetensors (save_pretrained)",
    "tf_model*.h5": "TensorFlow weights, which are not supported; load them in transformers 4 (from_tf=True) and save "
    "them as safetensors (save_pretrained)",
    "*.onnx onnx": "weights for ONNX, which are not supported; use the Hugging Face folder that they were converted "
    "from",
    "model_index.json": "a diffusers pipeline, not a CodeGen",
    "zero_to_fp32.py *_model_states.pt *_optim_states.pt": "a DeepSpeed checkpoint; convert it with its "
    "zero_to_fp32.py (python zero_to_fp32.py CHECKPOINT OUT), and add config.json and the tokenizer's files",
    "*.distcp pytorch_model_fsdp_*": "a torch.distributed checkpoint; merge its shards into a file (python -m "
    "torch.distributed.checkpoint.format_utils dcp_to_torch SHARDS FILE), load that into the model and save it "
    "(save_pretrained)",
    "latest_checkpointed_iteration.txt mp_rank_*": "a Megatron checkpoint, which is not supported; convert it to a "
    "Hugging Face folder with Megatron's converter",
    "*.ckpt": "a Lightning checkpoint, which is not supported; load it in Lightning and save its model "
    "(save_pretrained)",
    "vocabulary.json vocabulary.txt": "weights for CTranslate2, which are not supported; use the Hugging Face folder "
    "that they were converted from",
    "consolidated*.pth consolidated*.safetensors": "weights in the layout of Meta's or Mistral's own programs, which "
    "is not supported; convert them to a Hugging Face folder",
    "model.*.safetensors pytorch_model.*.bin": "weights of a variant, which are not supported; load them in "
    "transformers (from_pretrained with variant=...) and save them (save_pretrained)",
    "optimizer.pt": "a Trainer's optimizer state (optimizer.pt) without a model; use a folder with config.json and "
    "the model's weights",
}
MODELS = {  # hints by model_type in config.json
    "gptj": "; if convert --to gptj wrote it, use its source",
    "llama": "; CodeGen2.5 is a Llama, too",
}
TENSORS = {  # by pattern of a dot-separated component of the name
    r"lora_.*|vera_.*|hada_.*|lokr_.*|b?oft_.*|ia3_l|base_layer|modules_to_save|original_module": "a PEFT adapter's "
    "tensor; merge the adapter into its model (merge_and_unload) and save that",
    r"qweight|qzeros|scales|g_idx|SCB|weight_format|absmax|nested_absmax|quant_map|quant_state|W_q|weight_packed|"
    r"weight_scales?|_data": QUANTIZED,
    r"_?flat_param(_\d+)?": "one of FSDP's flattened shards; save the model with StateDictType.FULL_STATE_DICT",
}


def other_tensor(names: Iterable[str]) -> str | None:
    """The first tensor known not to be a plain weight, with a description; None if there is no such tensor."""
    for name in names:
        for pattern, description in TENSORS.items():
            if any(re.fullmatch(pattern, part) for part in name.split(".")):
                return f"{name}: {description}"
    return None


def other_model(model_type: object) -> str:
    """The message for a config.json of a model other than CodeGen."""
    hint = MODELS.get(str(model_type), "")
    return f"model_type is {model_type}, but only codegen is supported; load the model with transformers{hint}"


def other_program(path: Path) -> str | None:
    """Describe a file, or a folder's content, judging by file names; None if nothing is recognized."""
    files = list(path.iterdir()) if path.is_dir() else [path]
    for patterns, description in FILES.items():
        if any(file.match(pattern) for pattern in patterns.split() for file in files):
            return description
    return None
