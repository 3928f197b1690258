"""The token files of a run's config, opened and checked: what it trains on, and what it validates on."""

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
        weight: its share, before the weights are made to sum to 1.
        files: what it trains on.
        windows: of those files.
        validation: what it validates on, or None.
    """

    name: str
    weight: float
    files: TokenFiles
    windows: Windows
    validation: TokenFiles | None

    @property
    def suffix(self) -> str:
        """What tells this source's metrics from those of the others."""
        return f"/{self.name}" if self.name else ""


def open_sources(config: DataConfig) -> tuple[list[Source], Tokenizer]:
    """All sources, sorted by name, and the tokenizer that made them.

    Raises:
        UserError: for files that are missing, damaged, too short or not of one tokenizer.
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
            files.are_of(tokenizer),
            f"{files.folder} was made with tokenizer {files.manifest.tokenizer}, {first.folder} with "
            f"{first.manifest.tokenizer}; prepare all of a run's data with one tokenizer",
        )
    return sources, tokenizer


def make_order(config: RunConfig, sources: list[Source]) -> Order:
    """Which windows of the sources make up each step of a run."""
    lengths, weights = [len(source.windows) for source in sources], [source.weight for source in sources]
    return Order(lengths, weights, config.training.batch_size, config.seed, config.data.skip_steps)
