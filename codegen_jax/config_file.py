"""Read a `RunConfig` from YAML and --section.field arguments: jsonargparse with error messages of our own."""

import dataclasses
import json
import math
import re
import tempfile
from argparse import ArgumentError
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_args, get_origin, get_type_hints

import yaml
from etils import epath

from codegen_jax.config import CodeGenConfig, RunConfig, check_source_name
from codegen_jax.errors import UserError, require
from codegen_jax.fields import did_you_mean, in_words
from codegen_jax.mistaken_paths import read_text
from codegen_jax.storage import expand


class Given(NamedTuple):
    """A field set by the user.

    Attributes:
        place: the field's name in messages: "--seed", or "run.yaml: seed".
        name: dotted name.
        value: text, null or a list of those; the field's type determines how text is parsed, wherever it was given.
        is_flag: whether it was given on the command line.
    """

    place: str
    name: str
    value: Any
    is_flag: bool


def load_config(path: epath.PathLike, overrides: list[str] | None = None) -> RunConfig:
    """Read a run's YAML file.

    >>> config = load_config("configs/tiny_cpu.yaml", ["--training.steps", "5", "--seed=1"])
    >>> config.training.steps, config.seed
    (5, 1)

    Args:
        path: YAML file in the layout of `RunConfig`, or a run's run.json, which contains its config.
        overrides: command-line arguments; they take precedence over the file.

    Raises:
        UserError: for a missing file, an unknown name, a wrong type or an invalid value. The message begins with the
            flag if the mistake is on the command line, otherwise with the file and the field.
    """
    from_file, from_flags = list(_fields_of_file(path, _read_config(path))), list(_fields_of_flags(overrides or []))
    for field in (*from_file, *from_flags):
        _check_name(field)
    replaced = {field.name for field in from_flags if not field.place.endswith("+")}
    given = [_normalize(field) for field in (*from_file, *from_flags) if field.is_flag or field.name not in replaced]
    try:
        return RunConfig(**vars(_parse(given)))
    except ArgumentError as error:
        _check_values(given, path)
        raise UserError(f"{path}: {' '.join(str(error).removeprefix('argument ').split())}") from error
    except UserError as error:  # raised by a dataclass's own checks
        name = str(error).partition(":")[0]
        on_command_line = any(field.is_flag and field.name == name for field in given)
        raise UserError(f"--{error}" if on_command_line else f"{path}: {error}") from error


def shipped_config(name: str) -> Path | None:
    """The file of a config shipped with the package (350m_nl), in an installed package or a checkout; None if unknown.

    Raises:
        UserError: if the name is a likely misspelling.
    """
    package = Path(__file__).parent
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), None)
    files = {file.stem: file for file in folder.glob("*.yaml")} if folder else {}
    if name in files or not re.fullmatch(r"\w+", name):
        return files.get(name)
    close = did_you_mean(name, files)
    require(not close, f"{name}: no such file, folder or installed config{close}")
    return None


def dump_config(config: RunConfig) -> str:
    """A config as YAML that `load_config` can read."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def in_yaml(section: CodeGenConfig) -> str:
    """The non-default fields of a model config as one line of YAML."""
    values = {
        field.name: getattr(section, field.name)
        for field in dataclasses.fields(section)
        if getattr(section, field.name) != field.default
    }
    if section.head_dim * section.n_head == section.n_embd:
        del values["head_dim"]
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=math.inf).strip()


def fields_help() -> str:
    """Every field with its documentation, type and default."""
    text = _parser().format_help()
    # remove jsonargparse's own flags, which we reject
    text = re.sub(r"  --\S+( CONFIG)? +(Path to a|Show the help for) .*\n", "", text)
    return text.partition("\n\n")[2]


def _parser(**keywords: Any) -> Any:
    from jsonargparse import ArgumentParser  # only training reads YAML

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False, **keywords)
    parser.add_class_arguments(RunConfig)
    return parser


def _parse(given: list[Given]) -> Any:
    """Parse the fields with jsonargparse; those not given as flags go through a file, since it accepts no other way."""
    tree: dict[str, Any] = {}
    for field in given:
        if not field.is_flag:
            *sections, last = field.name.split(".")
            section = tree
            for name in sections:
                section = section.setdefault(name, {})
            require(last not in section, f"{field.name}: set twice")
            section[last] = field.value
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(tree, default_style='"'), "utf-8")  # quoted text stays text
        parser = _parser(default_config_files=[str(file)])
        flags = [f"{field.place}={field.value}" for field in given if field.is_flag]
        return parser.instantiate(parser.parse_args(flags))


def _read_config(path: epath.PathLike) -> dict[str, Any]:
    """The sections and fields of a config file, or of the config in a run's run.json."""
    text, is_json = read_text(path), str(path).endswith(".json")
    try:
        tree = json.loads(text) if is_json else yaml.load(text, Yaml)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not {'JSON' if is_json else 'YAML'} ({' '.join(str(error).split())})") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    require(isinstance(tree, dict), f"{path}: must consist of sections with fields, as in configs/")
    return tree["config"] if isinstance(tree.get("config"), dict) else tree


class Yaml(yaml.SafeLoader):
    """YAML in which plain scalars except null stay text as written; a duplicate key raises `UserError`.

    YAML 1.1 would read no and on as booleans, and parse dates and base-60 numbers.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # pyright: ignore - PyYAML does not annotate it as a ClassVar
        first: [pair for pair in pairs if pair[0] in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                require(key.value not in lines, f"{key.value}: set twice, on lines {lines.get(key.value)} and {line}")
                lines[key.value] = line
                if key.tag == "tag:yaml.org,2002:null":
                    key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def _fields_of_file(path: epath.PathLike, tree: dict[str, Any], prefix: str = "") -> Iterator[Given]:
    """The fields that a file sets; a section that is not a mapping counts as a field."""
    for key, value in tree.items():
        if prefix == "data.sources.":
            try:
                check_source_name(key)
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
        name = f"{prefix}{key}"
        if isinstance(value, dict) and _pattern(name) in SECTIONS:
            yield from _fields_of_file(path, value, f"{name}.")
        else:
            yield Given(f"{path}: {name}", name, value, False)


def _fields_of_flags(arguments: list[str]) -> Iterator[Given]:
    """The fields that a command line sets: --name value or --name=value."""
    remaining = iter(arguments)
    for argument in remaining:
        require(argument.startswith("--"), f"{argument!r}: unexpected argument; set fields with --section.field VALUE")
        flag, equals, value = argument.partition("=")
        if not equals:
            value = next(remaining, "--")
            require(not value.startswith("--"), f"{flag}: must be followed by a value")
        name = {"--adapter": "--init_adapters+"}.get(flag, flag)  # as for the other verbs
        yield Given(name, name[2:].removesuffix("+"), value, True)  # --field+=X appends to a list


def _check_name(field: Given) -> None:
    """Raise `UserError` if the field does not exist or is a section."""
    pattern = _pattern(field.name)
    if pattern in SECTIONS:
        raise UserError(f"{field.place}: must be a section with fields, got {field.value!r}")
    if pattern not in FIELDS:
        dashes, source = "--" if field.is_flag else "", "".join(field.name.split(".")[2:3])
        names = [dashes + name.replace("*", source) for name in [*FIELDS, *([] if dashes else SECTIONS)]]
        close = did_you_mean(dashes + field.name, names)
        raise UserError(f"{field.place}: no such field{close or '; codegen-jax train --help lists them'}")


def _normalize(field: Given) -> Given:
    """Expand paths, and write 1e3 as 1000 in fields of whole numbers.

    Raises:
        UserError: for an unset environment variable, or a number like 1:30, which jsonargparse would read in base 60.
    """
    pattern = _pattern(field.name)
    kind = in_words(FIELDS[pattern].hint)
    if pattern in PATHS:
        to_path = lambda value: expand(value) if isinstance(value, str) else value
        try:
            is_list = isinstance(field.value, list)
            return field._replace(value=list(map(to_path, field.value)) if is_list else to_path(field.value))
        except UserError as error:
            raise UserError(f"{field.place}: {error}") from error
    if "number" in kind:
        text = json.dumps(field.value)
        require(not re.search(r"\d:\d", text), f"{field.place}: must be {kind}, got {field.value!r}")
        if "whole number" in kind:
            return field._replace(value=json.loads(EXPONENT.sub(_without_exponent, text)))
    return field


EXPONENT = re.compile(r"(?<![\w.])\d+(\.\d+)?[eE]\+?\d\d?(?![\w.])")


def _without_exponent(number: re.Match[str]) -> str:
    """Write 1e3 as 1000; leave numbers that are not whole for the type check to reject."""
    value = Decimal(number[0])
    return str(int(value)) if value == int(value) else number[0]


def _check_values(given: list[Given], path: epath.PathLike) -> None:
    """Raise `UserError` for the first value of the wrong type, otherwise for a missing field."""
    for field in sorted(given, key=lambda field: not field.is_flag):  # flags take precedence over the file
        hint = FIELDS[_pattern(field.name)].hint
        require(_is_valid(field, hint), f"{field.place}: must be {in_words(hint)}, got {field.value!r}")
    names = {field.name for field in given if field.value is not None}
    sources = {name.rpartition(".")[0] for name in names if _pattern(name) != name}
    for name, (hint, is_required) in FIELDS.items():
        for filled in [name.replace(ANY, source) for source in sources] if ANY in name else [name]:
            is_missing = is_required and filled not in names
            require(not is_missing, f"{path}: {filled} is missing; it must be {in_words(hint)}")


def _is_valid(field: Given, hint: Any) -> bool:
    """Whether jsonargparse accepts the value for a field of this type."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    plus = "+" if field.place.endswith("+") else ""
    try:
        if field.is_flag:
            parser.parse_args([f"--value{plus}={field.value}"])
        else:
            parser.parse_string(yaml.safe_dump({"value": field.value}, default_style='"'))
    except ArgumentError:
        return False
    return True


class Field(NamedTuple):
    """A field's type, and whether it is required (has no default)."""

    hint: Any
    is_required: bool


ANY = "data.sources.*"  # stands for any source of the mixture in field names
PATHS = {
    "output",
    "init_from",
    "adapter.init_from",
    "init_adapters",
    "data.train",
    "data.validation",
    f"{ANY}.path",
    f"{ANY}.validation",
}


def _pattern(name: str) -> str:
    """Replace a source's name with *: data.sources.pile.weight gives data.sources.*.weight."""
    head, dot, rest = name.removeprefix("data.sources.").partition(".")
    return f"{ANY}{dot}{rest}" if name.startswith("data.sources.") and head else name


def _schema(cls: type, prefix: str = "") -> tuple[dict[str, Field], set[str]]:
    """The fields of a dataclass, keyed by dotted name, and the names of its sections."""
    fields: dict[str, Field] = {}
    sections: set[str] = set()
    for field in dataclasses.fields(cls):
        name, hint = f"{prefix}{field.name}", get_type_hints(cls)[field.name]
        inner: list[tuple[Any, str]] = [(hint, name)] if dataclasses.is_dataclass(hint) else []
        if get_origin(hint) is dict:
            inner = [(get_args(hint)[1], f"{name}.*")]
        for section, section_name in inner:
            more_fields, more_sections = _schema(section, f"{section_name}.")
            fields |= more_fields
            sections |= {name, section_name, *more_sections}
        if not inner:
            fields[name] = Field(hint, field.default is field.default_factory is dataclasses.MISSING)
    return fields, sections


FIELDS, SECTIONS = _schema(RunConfig)
