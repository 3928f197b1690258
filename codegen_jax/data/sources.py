"""Open and check the token files in a run's config, for training and validation."""

from typing import NamedTuple

from codegen_jax.config import DataConfig, RunConfig
from codegen_jax.data.order import Order
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.data.tokens import TokenFiles, Windows
from codegen_jax.errors import require


class Source(NamedTuple):
    """One source of the mixture.

    Attributes:
        name: its key in data.sources; "" for data.train.
        weight: its weight, before the weights are normalized to sum to 1.
        files: token files for training.
        windows: the windows of those files.
        validation: token files for validation, or None.
    """

    name: str
    weight: float
    files: TokenFiles
    windows: Windows
    validation: TokenFiles | None

    @property
    def suffix(self) -> str:
        """Suffix of the names of this source's metrics."""
        return f"/{self.name}" if self.name else ""


def open_sources(config: DataConfig) -> tuple[list[Source], Tokenizer]:
    """Open all sources, sorted by name, and the tokenizer that encoded them.

    Raises:
        UserError: if files are missing, damaged, too short, or were made with different tokenizers.
    """
    sources = []
    for name, source in sorted(config.mixture.items()):
        files = TokenFiles(source.path)
        validation = TokenFiles(source.validation) if source.validation else None
        sources.append(Source(name, source.weight, files, Windows(files, config.sequence_length), validation))
        if validation is not None:
            Windows(validation, config.sequence_length)
    first = sources[0].files
    tokenizer = first.tokenizer()
    for files in (files for source in sources for files in (source.files, source.validation) if files is not None):
        require(
            files.made_with(tokenizer),
            f"{files.folder} was made with tokenizer {files.manifest.tokenizer}, {first.folder} with "
            f"{first.manifest.tokenizer}; prepare all data of a run with the same tokenizer",
        )
    return sources, tokenizer


def make_order(config: RunConfig, sources: list[Source]) -> Order:
    """The order in which the windows of the sources make up the steps of a run."""
    lengths, weights = [len(source.windows) for source in sources], [source.weight for source in sources]
    return Order(lengths, weights, config.training.batch_size, config.seed, config.data.skip_steps)
