"""What lies beside a tokenizer in a Hugging Face folder and says more of it than its ids; carried wherever it goes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codegen_jax.errors import UserError, require

VOCABULARY = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")  # of slow tokenizers
TEMPLATES = ("chat_template.jinja", "chat_template.json")
NAMES = ("tokenizer_config.json", "special_tokens_map.json", *TEMPLATES, *VOCABULARY)
ROLES = ("eos_token", "pad_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")


def read_metadata(folder: Path) -> dict[str, bytes]:
    """The files by name; those of `NAMES` that are there."""
    return {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}


def special_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """The text of each special token by its role ("eos_token"); of further ones by itself.

    Raises:
        UserError: for a file that does not parse.
    """
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the latter is the newer, and has the last word
        said = parse(files, name)
        for role in ROLES:
            if token := _text(said.get(role)):
                found[role] = token
        for role in LISTS:
            tokens = said.get(role) or []
            for token in map(_text, tokens.values() if isinstance(tokens, dict) else tokens):
                if token:
                    found[token] = token
    return found


def parse(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """What a file of these says; nothing if it is not among them."""
    try:
        said = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise UserError(f"{name}: not JSON ({error}); fetch it again") from error
    require(isinstance(said, dict), f"{name}: a {type(said).__name__}, not an object; fetch it again")
    return said


def _text(token: Any) -> str | None:
    """A token as transformers writes it: its text, or an object with that and its habits."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) and token else None
