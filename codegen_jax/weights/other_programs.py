"""Recognize other programs' weights by file or tensor names, and say what they are and what to do with them."""

import re
from collections.abc import Iterable
from pathlib import Path

QUANTIZED = "quantized weights, which are not read; give the model that they were made of"
FILES = {
    "adapter_config.json adapter_model.*": "a PEFT adapter, which is a part of a model; merge it into the model that "
    "it was trained on (PEFT's merge_and_unload, then save_pretrained) and give that folder",
    "*.gguf": "weights for llama.cpp (GGUF), which are not read; give the Hugging Face folder that they were made of",
    "quantize_config.json quant_config.json gptq_model*": QUANTIZED,
    "flax_model*.msgpack": "Flax weights, which are not read; load them in transformers 4 (from_flax=True), whose "
    "save_pretrained writes safetensors",
    "tf_model*.h5": "TensorFlow weights, which are not read; load them in transformers 4 (from_tf=True), whose "
    "save_pretrained writes safetensors",
    "*.onnx onnx": "weights for ONNX, which are not read; give the Hugging Face folder that they were made of",
    "model_index.json": "a diffusers pipeline, which is no CodeGen",
    "zero_to_fp32.py *_model_states.pt *_optim_states.pt": "a checkpoint of DeepSpeed; its zero_to_fp32.py makes "
    "weights of it: python zero_to_fp32.py CHECKPOINT OUT; add config.json and the tokenizer's files",
    "*.distcp pytorch_model_fsdp_*": "a checkpoint of torch.distributed; make a file of its shards (python -m "
    "torch.distributed.checkpoint.format_utils dcp_to_torch SHARDS FILE), load that into the model and save it "
    "(save_pretrained)",
    "latest_checkpointed_iteration.txt mp_rank_*": "a checkpoint of Megatron, which is not read; give the Hugging Face "
    "folder that its converter makes",
    "*.ckpt": "a checkpoint of Lightning, which is not read; load it there and save its model (save_pretrained)",
    "vocabulary.json vocabulary.txt": "weights for CTranslate2, which are not read; give the Hugging Face folder that "
    "they were made of",
    "consolidated*.pth consolidated*.safetensors": "weights in the layout of Meta's or Mistral's own programs, which "
    "is not read; give the Hugging Face folder that a converter makes of them",
    "model.*.safetensors pytorch_model.*.bin": "weights under a variant's name, which are not read; load them in "
    "transformers (from_pretrained with variant=...) and save them (save_pretrained)",
    "optimizer.pt": "what a Trainer keeps beside a model (optimizer.pt); give a folder with config.json and the "
    "model's weights",
}
MODELS = {  # hints by model_type in config.json
    "gptj": "; of what convert --to gptj made, give the source",
    "llama": "; CodeGen2.5 is one, too",
}
TENSORS = {  # by pattern of a dot-separated component of the name
    r"lora_.*|vera_.*|hada_.*|lokr_.*|b?oft_.*|ia3_l|base_layer|modules_to_save|original_module": "of a PEFT adapter; "
    "merge it into its model (merge_and_unload) and save that",
    r"qweight|qzeros|scales|g_idx|SCB|weight_format|absmax|nested_absmax|quant_map|quant_state|W_q|weight_packed|"
    r"weight_scales?|_data": QUANTIZED,
    r"_?flat_param(_\d+)?": "of FSDP's flattened shards; save the model with StateDictType.FULL_STATE_DICT",
}


def other_tensor(names: Iterable[str]) -> str | None:
    """The first tensor known not to be a plain weight, and what it is; None if there is no such tensor."""
    for name in names:
        for pattern, what in TENSORS.items():
            if any(re.fullmatch(pattern, part) for part in name.split(".")):
                return f"{name}: {what}"
    return None


def other_model(model_type: object) -> str:
    """The message for a config.json of a model other than CodeGen."""
    hint = MODELS.get(str(model_type), "")
    return f"model_type is {model_type}, not codegen, and only CodeGen is read; load it with transformers{hint}"


def other_program(path: Path) -> str | None:
    """What a file is, or what a folder contains, judging by file names; None if nothing is recognized."""
    files = list(path.iterdir()) if path.is_dir() else [path]
    for patterns, what in FILES.items():
        if any(file.match(pattern) for pattern in patterns.split() for file in files):
            return what
    return None
