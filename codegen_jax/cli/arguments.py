"""Arguments shared by several verbs, and the parser that reads them."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from codegen_jax.errors import UserError, require

if TYPE_CHECKING:
    from codegen_jax.config import RunConfig
    from codegen_jax.inference.generate import Generator

CONFIG = "CONFIG.yaml, the name of an installed config (350m_nl), or a run's output folder, whose config it is then"
MODEL = "a run's output folder, a checkpoint, a Hugging Face folder or a hub id (OWNER/NAME[@REVISION])"


# metavars of path arguments
PATHS = {"CONFIG", "MODEL", "SOURCE", "DESTINATION", "INPUT", "DIR", "FILE", "FILE.png", "T", "TASK", "TOKENS"}


def path(word: str) -> str:
    """Expand ~ and $NAME, for `type=`: the shell leaves them alone when they are quoted or follow an =."""
    if not {"~", "$"} & set(word):
        return word
    from codegen_jax.storage import expand

    try:
        return expand(word)
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

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")

    def calls(self, verb: Callable[[argparse.Namespace], None], takes_fields: bool = False) -> None:
        """Set the function that runs once the arguments are parsed; `takes_fields` allows any --section.field VALUE."""
        self.set_defaults(verb=verb, parser=self, takes_fields=takes_fields)


def whole_number(word: str) -> int:
    """Parse an int, for `type=`; argparse's own message would be "invalid int value"."""
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} must be a whole number") from None


def number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} must be a number") from None


def add_config(parser: Parser) -> None:
    """Add a run's config and overrides of its fields."""
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help=f"{CONFIG}; any field may follow as --section.field VALUE, codegen-jax train --help lists them",
    )


def read_config(arguments: argparse.Namespace) -> "RunConfig":
    """The config named by the arguments, with their overrides applied.

    A run's output folder, even if it has been moved, stands for that run's config with `output` set to the folder.
    """
    from codegen_jax.config_file import load_config, shipped_config
    from codegen_jax.mistaken_paths import holds
    from codegen_jax.storage import open_path
    from codegen_jax.weights.run_folder import RUN_FILE

    path, words = arguments.config, arguments.overrides
    folder = open_path(path)
    if folder.is_dir():
        names = sorted(file.name for file in folder.iterdir())
        message = f"{path}: a folder without {RUN_FILE}, no run's output; it {holds(names)}; name a config in YAML"
        require(RUN_FILE in names, message)
        path, words = f"{path.rstrip('/')}/{RUN_FILE}", ["--output", str(folder), *words]
    elif not folder.exists():
        path = shipped_config(path) or path
    return load_config(path, words)


def add_loading(parser: Parser) -> None:
    """Add the arguments that control how a model is loaded."""
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="of the computation (default: the model's)")
    parser.add_argument("--quantize", choices=("int8",), help="weights as int8 with a scale for each output")
    parser.add_argument(
        "--data", type=whole_number, default=1, metavar="N", help="devices that share rows (default: %(default)s)"
    )
    parser.add_argument(
        "--tensor", type=whole_number, default=1, metavar="N", help="and the heads (default: %(default)s)"
    )
    add_allow_nonfinite(parser)


def add_allow_nonfinite(parser: Parser) -> None:
    parser.add_argument(
        "--allow-nonfinite", action="store_true", help="take weights that hold NaN or infinity, with a warning"
    )


def load(arguments: argparse.Namespace, **changes: Any) -> "Generator":
    """Load the model named by the arguments."""
    from codegen_jax.compilation import use_compilation_cache
    from codegen_jax.config import MeshConfig
    from codegen_jax.inference.generate import Generator

    for name in ("data", "tensor"):
        value = getattr(arguments, name)
        require(value > 0, f"{name}: {value} must be positive")
    use_compilation_cache()
    mesh = None if arguments.data == arguments.tensor == 1 else MeshConfig(arguments.data, 1, arguments.tensor)
    given: dict[str, Any] = {name: getattr(arguments, name) for name in ("model", "dtype", "allow_nonfinite")}
    return Generator.load(**given, mesh=mesh, **changes)
