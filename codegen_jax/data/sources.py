"""Open and check the token files in a run's config, for training and validation."""

from fractions import Fraction
from typing import NamedTuple

from codegen_jax.config import DataConfig, RunConfig
from codegen_jax.data.order import Order
from codegen_jax.data.packing import Examples
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.data.tokenizer_metadata import LAYOUT_FILE, TEMPLATE_FILE
from codegen_jax.data.tokens import TokenFiles, Windows
from codegen_jax.errors import require

Rows = Windows | Examples


def open_rows(files: TokenFiles, sequence_length: int, document_mask: bool) -> Rows:
    """The rows of a folder: windows of plain text, or rows of whole examples.

    Raises:
        UserError: if there is no row, or an example is longer than one, or examples share rows without a document mask.
    """
    if not files.manifest.has_examples:
        return Windows(files, sequence_length, document_mask)
    packed = files.manifest.windows == "packed"
    require(
        document_mask or not packed,
        f"data.document_mask: must be true, since {files.folder} has several examples per row (prepare --pack)",
    )
    return Examples(files, sequence_length, packed)


class Source(NamedTuple):
    """One source of the mixture.

    Attributes:
        name: its key in data.sources; "" for data.train.
        weight: its weight, before the weights are normalized to sum to 1.
        files: token files for training.
        rows: the rows of those files.
        validation: the rows of the token files for validation, or None.
    """

    name: str
    weight: float
    files: TokenFiles
    rows: Rows
    validation: Rows | None

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
        open_all = lambda files: open_rows(files, config.sequence_length, config.document_mask)
        rows, validation_rows = open_all(files), None if validation is None else open_all(validation)
        sources.append(Source(name, source.weight, files, rows, validation_rows))
    first = sources[0].files
    tokenizer = first.tokenizer()
    for files in [rows.files for source in sources for rows in (source.rows, source.validation) if rows is not None]:
        require(
            files.made_with(tokenizer),
            f"{files.folder} was made with tokenizer {files.manifest.tokenizer}, {first.folder} with "
            f"{first.manifest.tokenizer}; prepare all data of a run with the same tokenizer",
        )
    return sources, _with_files_of(sources, tokenizer)


def _with_files_of(sources: list[Source], tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the chat template and the layout for fill-in-the-middle of any source.

    Raises:
        UserError: if two sources have different ones.
    """
    for name in (TEMPLATE_FILE, LAYOUT_FILE):
        paths = [source.files.folder / "tokenizer" / name for source in sources]
        found = {path.read_bytes(): path for path in paths if path.exists()}
        require(len(found) < 2, f"{' and '.join(map(str, found.values()))} differ; prepare all data with the same one")
        for content in found:
            tokenizer = tokenizer.with_file(name, content)
    return tokenizer


def rows_per_epoch(sources: list[Source]) -> Fraction:
    """The number of rows, over all sources, after which each source has been seen at least once."""
    weights = [Fraction(str(source.weight)) for source in sources]
    return max(len(source.rows) * sum(weights) / weight for source, weight in zip(sources, weights, strict=True))


def make_order(config: RunConfig, sources: list[Source]) -> Order:
    """The order in which the windows of the sources make up the steps of a run."""
    lengths, weights = [len(source.rows) for source in sources], [source.weight for source in sources]
    return Order(lengths, weights, config.training.batch_size, config.seed, config.data.skip_steps)
