"""A Hugging Face folder's settings for ending and padding completions; they are carried along with the model."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.data.tokenizer_metadata import CONFIG as TOKENIZER_CONFIG
from codegen_jax.errors import UserError, listed, require
from codegen_jax.mistaken_paths import read_text, reject_placeholder
from codegen_jax.strict_json import loads

log = logging.getLogger(__name__)

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
GPT2_EOS_ID = 50256

# keyed by file name: for config.json, the IDS that it sets; for generation_config.json, its entire content
GenerationConfig = dict[str, dict[str, Any]]


def read_generation_config(folder: Path, config: Mapping[str, Any]) -> GenerationConfig:
    """Read the settings of a folder from generation_config.json and `config`, the content of config.json.

    Raises:
        UserError: if generation_config.json does not parse, or an id is invalid.
    """
    settings = {CONFIG: {name: config[name] for name in IDS if config.get(name) is not None}}
    path = folder / GENERATION_CONFIG
    if path.is_file():
        try:
            reject_placeholder(path)
            settings[GENERATION_CONFIG] = loads(read_text(path))
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error}); download it again") from error
        require(isinstance(settings[GENERATION_CONFIG], dict), f"{path}: must contain a JSON object; download it again")
    for file, values in settings.items():
        for name in IDS:
            are_ids = all(isinstance(id, int) and not isinstance(id, bool) for id in ids_of(values.get(name)))
            require(are_ids, f"{folder / file}: {name} must be an id or a list of ids, got {values.get(name)!r}")
    return settings


def fit_to_tokenizer(settings: GenerationConfig, tokenizer: Tokenizer, source: str) -> GenerationConfig:
    """Replace token ids that do not fit the tokenizer.

    The first releases of CodeGen have eos_token_id 2, which is "#". An id that stands for ordinary text in the
    tokenizer, or is outside its vocabulary, is dropped; if none are left, the tokenizer's eos_id is used. A change to
    eos_token_id is logged as a warning; the other ids do not affect completions.
    """
    fitted: GenerationConfig = {}
    for file, values in settings.items():
        fitted[file] = dict(values)
        for name in IDS:
            ids = ids_of(values.get(name))
            valid = [id for id in ids if 0 <= id < tokenizer.vocab_size and not tokenizer.is_text_token(id)]
            if valid != ids:
                eos_id = tokenizer.eos_id if tokenizer.eos_id >= 0 else None
                fitted[file][name] = valid or eos_id
                if name == "eos_token_id":
                    given, used = (listed([str(id) for id in some]) for some in (ids, valid or [eos_id]))
                    log.warning(f"{source}: {name} {given} in {file} does not fit the tokenizer; using {used}")
    return fitted


def ids_of(value: Any) -> list[int]:
    """Convert an id, a list of ids or null to a list."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def end_ids(settings: GenerationConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end a completion: from generation_config.json, else from config.json (as in transformers), else the
    tokenizer's own."""
    values = settings.get(GENERATION_CONFIG, {}).get("eos_token_id", settings.get(CONFIG, {}).get("eos_token_id"))
    return tuple(sorted({*(ids_of(values) or tokenizer.end_ids)}))


def with_defaults(settings: GenerationConfig, tokenizer: Tokenizer | None) -> GenerationConfig:
    """The settings to write to both files.

    If the model has no settings, or its tokenizer has no tokenizer_config.json, missing values get defaults:
    eos_token_id is the set of ids that end our completions, and bos and pad are the end-of-document id, which makes
    batching work.
    """
    default: dict[str, Any] = {}
    if tokenizer is None:
        default = {} if settings else dict.fromkeys(IDS, GPT2_EOS_ID)
    elif not settings or TOKENIZER_CONFIG not in tokenizer.metadata:
        default = dict.fromkeys(IDS, tokenizer.eos_id if tokenizer.eos_id >= 0 else None)
        if len(tokenizer.end_ids) > 1:
            default["eos_token_id"] = list(tokenizer.end_ids)
    config = settings.get(CONFIG, {})
    return {CONFIG: default | config, GENERATION_CONFIG: default | settings.get(GENERATION_CONFIG, config)}
