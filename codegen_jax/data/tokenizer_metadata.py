"""Files that accompany a tokenizer in a Hugging Face folder, such as chat templates. They are copied along with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codegen_jax.errors import UserError, require
from codegen_jax.mistaken_paths import decode, reject_placeholder
from codegen_jax.strict_json import loads

VOCABULARY = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")  # files of slow tokenizers
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATES = (TEMPLATE_FILE, "chat_template.json")
LAYOUT_FILE = "infill.json"  # see infill.py
NAMED_TEMPLATES = "additional_chat_templates/*.jinja"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKEN_FILES = ("special_tokens_map.json", CONFIG)  # the latter is the newer format and takes precedence
NAMES = (*SPECIAL_TOKEN_FILES, *TEMPLATES, *VOCABULARY, LAYOUT_FILE)
ROLES = ("eos_token", "pad_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")


def read_metadata(folder: Path) -> dict[str, bytes]:
    """Read those files in `NAMES` and `NAMED_TEMPLATES` that exist, and return their contents by name.

    Raises:
        UserError: if a file does not parse.
    """
    paths = [path for path in (folder / name for name in NAMES) if path.is_file()] + [*folder.glob(NAMED_TEMPLATES)]
    for path in paths:
        reject_placeholder(path)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}
    for name in files.keys() & set(SPECIAL_TOKEN_FILES):
        path = folder / name
        try:
            content = loads(decode(path, files[name]))
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error}); download it again") from error
        message = f"{path}: must contain a JSON object, got a {type(content).__name__}; download it again"
        require(isinstance(content, dict), message)
        for role in LISTS:
            message = f"{path}: {role} must be a list of tokens, got {content.get(role)!r}"
            require(isinstance(content.get(role), list | dict | None), message)
    return files


def special_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """The text of each special token, keyed by its role ("eos_token"), or by the text itself for additional tokens."""
    found: dict[str, str] = {}
    for content in (parse(files, name) for name in SPECIAL_TOKEN_FILES):
        for role in ROLES:
            if token := _text(content.get(role)):
                found[role] = token
        for role in LISTS:
            tokens = content.get(role) or []
            for token in map(_text, tokens.values() if isinstance(tokens, dict) else tokens):
                if token:
                    found[token] = token
    return found


def parse(files: Mapping[str, bytes], name: str) -> Any:
    """The parsed content of one of these files; an empty dict if it is absent."""
    return loads(files.get(name, b"{}").decode("utf-8-sig"))


def _text(token: Any) -> str | None:
    """The text of a token, which transformers writes either as a string or as an object with "content" and flags."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) and token else None
