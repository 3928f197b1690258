"""Arguments shared by several verbs, and the parser that reads them."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from codegen_jax.errors import UserError, require
from codegen_jax.renamed import current_flags

if TYPE_CHECKING:
    from codegen_jax.config import RunConfig
    from codegen_jax.inference.generator import Generator

CONFIG = (
    "a YAML file, the name of an installed config, such as 350m_nl, or a run's output folder, which contains its config"
)
MODEL = "a run's output folder, a checkpoint, a Hugging Face folder or a hub id (OWNER/NAME[@REVISION])"


# metavars of path arguments
PATHS = {"CONFIG", "MODEL", "SOURCE", "DESTINATION", "INPUT", "DIR", "FILE", "FILE.png", "T", "TASK", "TOKENS"}
PATHS |= {"ADAPTER"}


def path(text: str) -> str:
    """An argparse type: expands ~ and $NAME, which the shell leaves as they are if they are quoted or follow an =."""
    if not {"~", "$"} & set(text):
        return text
    from codegen_jax.storage import expand

    try:
        return expand(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations; errors are raised as `UserError`."""

    def __init__(self, **keywords: Any):
        self.flags: dict[str, str] = {}  # keyed by the field each flag sets
        super().__init__(allow_abbrev=False, **keywords)

    def add_argument(self, *names: Any, **keywords: Any) -> argparse.Action:
        if keywords.get("metavar") in PATHS:
            keywords["type"] = path
        action = super().add_argument(*names, **keywords)
        if action.option_strings:
            self.flags[action.dest] = action.option_strings[-1]
        return action

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore
        return super().parse_known_args(args and current_flags(args, self.flags.values()), namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")

    def calls(self, verb: Callable[[argparse.Namespace], None], accepts_fields: bool = False) -> None:
        """Set the function to run on the parsed arguments; `accepts_fields` allows any --section.field VALUE."""
        self.set_defaults(verb=verb, parser=self, accepts_fields=accepts_fields)


def whole_number(text: str) -> int:
    """Parse an int, for `type=`; argparse's own message would be "invalid int value"."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def add_config(parser: Parser, is_optional: bool = False) -> None:
    """Add the argument for a run's config, whose fields can be overridden."""
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?" if is_optional else None,
        help=f"{CONFIG}; override any field with --section.field VALUE (codegen-jax train --help lists them)",
    )


def read_config(arguments: argparse.Namespace) -> "RunConfig":
    """The config named by the arguments, with their overrides applied.

    A run's output folder, even if it has been moved, means that run's config with `output` set to the folder.
    """
    from codegen_jax.config_file import load_config, shipped_config
    from codegen_jax.mistaken_paths import contains
    from codegen_jax.storage import open_path
    from codegen_jax.weights.run_folder import RUN_FILE

    path, overrides = arguments.config, arguments.overrides
    folder = open_path(path)
    if folder.is_dir():
        names = sorted(file.name for file in folder.iterdir())
        message = f"{path}: not a run's output folder, as it has no {RUN_FILE}; it {contains(names)}; give a YAML file"
        require(RUN_FILE in names, message)
        path, overrides = f"{path.rstrip('/')}/{RUN_FILE}", ["--output", str(folder), *overrides]
    elif not folder.exists():
        path = shipped_config(path) or path
    return load_config(path, overrides)


def add_loading(parser: Parser) -> None:
    """Add the arguments that control how a model is loaded."""
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="compute dtype (default: the model's)")
    parser.add_argument("--quantize", choices=("int8",), help="int8 weights with one scale per output channel")
    parser.add_argument(
        "--data",
        type=whole_number,
        default=1,
        metavar="N",
        help="devices that share the rows of a batch (default: %(default)s)",
    )
    parser.add_argument(
        "--tensor",
        type=whole_number,
        default=1,
        metavar="N",
        help="devices that share the attention heads (default: %(default)s)",
    )
    add_adapter(parser)
    add_allow_nonfinite(parser)


def add_decoding(parser: Parser) -> None:
    """Add the arguments that control how fast completions are decoded, and in how much memory."""
    parser.add_argument(
        "--draft",
        metavar="MODEL",
        help="speculative decoding, which does not change the output: lookup drafts from prompt and output; otherwise "
        "a draft model",
    )
    parser.add_argument(
        "--max-rows", type=whole_number, metavar="N", help="completions decoded together (default: 64, or 16 on a CPU)"
    )
    parser.add_argument(
        "--max-kv-bytes",
        type=whole_number,
        metavar="N",
        help="maximum size of the keys and values per device (default: what the weights leave of 90%% of its memory, "
        "or half of the memory on a CPU)",
    )


def add_adapter(parser: Parser) -> None:
    """Add the argument for the adapters of a model."""
    parser.add_argument(
        "--adapter",
        dest="adapters",
        action="append",
        default=[],
        metavar="ADAPTER",
        help="merge an adapter into the weights: a PEFT folder, a hub id or a run that trained one; may be repeated, "
        "and ADAPTER=WEIGHT scales its updates",
    )


def add_allow_nonfinite(parser: Parser) -> None:
    parser.add_argument(
        "--allow-nonfinite",
        action="store_true",
        help="accept weights that contain NaN or infinity, with a warning; adapters must be finite",
    )


def load(arguments: argparse.Namespace, **changes: Any) -> "Generator":
    """Load the model named by the arguments."""
    from codegen_jax.compilation import use_compilation_cache
    from codegen_jax.config import MeshConfig
    from codegen_jax.inference.generator import Generator

    for name in ("data", "tensor"):
        value = getattr(arguments, name)
        require(value > 0, f"{name}: must be positive, got {value}")
    use_compilation_cache()
    mesh = None if arguments.data == arguments.tensor == 1 else MeshConfig(arguments.data, 1, arguments.tensor)
    # `evaluate MODEL harness` and `perplexity` lack the last three
    names = ("model", "adapters", "dtype", "allow_nonfinite", "draft", "max_rows", "max_kv_bytes")
    given: dict[str, Any] = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    return Generator.load(**given, mesh=mesh, **changes)
