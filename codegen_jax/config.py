"""All settings of a training run, as frozen dataclasses; config_file.py reads them from YAML and the command line."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from codegen_jax.errors import require, require_seed
from codegen_jax.fields import check_fields


@dataclass(frozen=True)
class CodeGenConfig:
    """Architecture (the CodeGen paper's section 2.2; sizes from config/*.json of jaxformer, the authors' code).

    >>> config = CodeGenConfig(n_layer=20, n_embd=1024, n_head=16, rotary_dim=32)  # CodeGen-350M
    >>> config.head_dim, config.n_params
    (64, 356712448)

    Attributes:
        n_layer: number of blocks.
        n_embd: width of the residual stream.
        n_head: attention heads per block.
        rotary_dim: leading channels of each head that are rotated; even, at most head_dim.
        vocab_size: rows of the embedding; at least the tokenizer's vocabulary.
        n_positions: longest context in tokens.
        head_dim: channels per head; 0 means n_embd / n_head, which every CodeGen 1 model uses.
        layer_norm_epsilon: constant added to the variance.
        embedding_bias: train a vector that is added to every embedding, as in the authors' code. In released and
            exported weights, it is folded into the embedding.
        init: initialization: the authors' (jaxformer) or normal(0.02) (huggingface).
        dtype: dtype of activations and matrix products; parameters are float32.
        attention: xla, pallas or splash (TPU) or cudnn (NVIDIA GPUs); auto picks the fastest for the available devices.
    """

    n_layer: int
    n_embd: int
    n_head: int
    rotary_dim: int
    vocab_size: int = 51200
    n_positions: int = 2048
    head_dim: int = 0
    layer_norm_epsilon: float = 1e-5
    embedding_bias: bool = False
    init: Literal["jaxformer", "huggingface"] = "jaxformer"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    attention: Literal["auto", "xla", "pallas", "splash", "cudnn"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        for name in ("n_layer", "n_embd", "n_head", "vocab_size", "n_positions"):
            require(getattr(self, name) > 0, f"model.{name}: must be positive, got {getattr(self, name)}")
        require(self.head_dim >= 0, f"model.head_dim: must be positive, or 0 for n_embd / n_head, got {self.head_dim}")
        if not self.head_dim:
            require(
                self.n_embd % self.n_head == 0,
                f"model.n_head: {self.n_head} does not divide model.n_embd = {self.n_embd}; choose a divisor",
            )
            object.__setattr__(self, "head_dim", self.n_embd // self.n_head)  # the dataclass is frozen
        require(
            self.rotary_dim % 2 == 0 and 0 < self.rotary_dim <= self.head_dim,
            f"model.rotary_dim: must be even and at most head_dim = {self.head_dim}, got {self.rotary_dim}",
        )

    @property
    def n_inner(self) -> int:
        """Width of the MLP."""
        return 4 * self.n_embd

    @property
    def n_params(self) -> int:
        """Number of parameters, in closed form."""
        d, attention = self.n_embd, 4 * self.n_head * self.head_dim
        outside = 2 * self.vocab_size * d + 2 * d + self.vocab_size + self.embedding_bias * d
        return self.n_layer * (attention * d + 8 * d * d + 7 * d) + outside

    def flops_per_token(self, sequence_length: int, is_frozen: bool = False) -> int:
        """Model FLOPs to train on one token, forward and backward; causal attention counts as half.

        Frozen weights take 4 per parameter instead of 6, since their gradients are not computed. The updates of an
        adapter are not counted.
        """
        attention = 12 * self.n_layer * self.n_head * self.head_dim * sequence_length // 2
        return (4 if is_frozen else 6) * self.n_params + attention


@dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture.

    Attributes:
        path: folder of token files.
        weight: share of the rows, relative to the other sources' weights.
        validation: folder of token files, or null for no validation.
    """

    path: str
    weight: float
    validation: str | None = None


def check_source_name(name: Any) -> None:
    """Raise `UserError` for an invalid source name: "/" ends it in metric names, "." ends it in flags."""
    is_name = isinstance(name, str) and bool(name) and not set(name) & set("/.")
    require(is_name, f"data.sources: a source's name must be non-empty text without slashes or periods, got {name!r}")


@dataclass(frozen=True)
class DataConfig:
    """Token files made by `codegen-jax prepare`: one folder as `train`, or a mixture as `sources`.

    Attributes:
        train: folder of token files.
        validation: folder of token files, or null for no validation.
        sources: the mixture; each source NAME has data.sources.NAME.path, .weight and, optionally, .validation.
        sequence_length: tokens trained on per row (each row reads one more).
        document_mask: restrict attention to the same document and restart positions at 0; the authors do neither.
            Required for examples packed by prepare --pack.
        skip_steps: pairs [first, last]: skip the data of these steps, so step `first` trains on the data of `last` + 1.
    """

    train: str | None = None
    validation: str | None = None
    sources: dict[str, SourceConfig] = field(default_factory=dict, hash=False)
    sequence_length: int = 2048
    document_mask: bool = False
    skip_steps: list[list[int]] = field(default_factory=list, hash=False)

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        require(bool(self.sources) != (self.train is not None), "data: set either data.train or data.sources, not both")
        require(
            not self.sources or self.validation is None,
            "data.validation: requires data.train; with data.sources, set data.sources.NAME.validation instead",
        )
        for name, source in self.sources.items():
            check_fields(source, f"data.sources.{name}.")
            check_source_name(name)
            require(source.weight > 0, f"data.sources.{name}.weight: must be positive, got {source.weight}")
        require(self.sequence_length > 0, f"data.sequence_length: must be positive, got {self.sequence_length}")
        for pair in self.skip_steps:
            require(
                len(pair) == 2 and 1 <= pair[0] <= pair[1],
                f"data.skip_steps: must be [first, last] with 1 <= first <= last, got {pair}",
            )

    @property
    def mixture(self) -> dict[str, SourceConfig]:
        """The sources by name; data.train has the empty name."""
        return self.sources or {"": SourceConfig(str(self.train), 1.0, self.validation)}


LINEAR_LAYERS = ("qkv_proj", "out_proj", "fc_in", "fc_out")  # of each block, by their names in transformers


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA (Hu et al. 2021, arXiv 2106.09685): train low-rank updates of some matrices, and leave the weights alone.

    Targets have the names of transformers and PEFT. The fused qkv_proj has one matrix A for query, key and value.

    >>> AdapterConfig(rank=16, targets=["all-linear", "lm_head"]).modules
    ('qkv_proj', 'out_proj', 'fc_in', 'fc_out', 'lm_head')

    Attributes:
        rank: rank of the updates; 0: no adapter, so that all weights are trained.
        alpha: updates are multiplied by alpha / rank; null: alpha is the rank.
        rslora: multiply them by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv 2312.03732).
        dropout: probability with which an input of an update is dropped in training.
        targets: matrices with updates: qkv_proj, out_proj, fc_in, fc_out, lm_head; all-linear: the first four.
        layers: blocks with updates, counted from 0; empty: all.
        trainable_tokens: ids whose rows of the embedding are trained as well; null: those that the tokenizer of
            init_from lacks, such as the special tokens of fill-in-the-middle.
        init_from: adapter to go on with, as a PEFT folder or a run's output folder; null: updates start at 0.
        quantize: hold the matrices of the blocks in 8 bits, or in 4 bits as in QLoRA (arXiv 2305.14314); null: in the
            compute dtype.
    """

    rank: int = 0
    alpha: float | None = None
    rslora: bool = False
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["all-linear"], hash=False)
    layers: list[int] = field(default_factory=list, hash=False)
    trainable_tokens: list[int] | None = field(default=None, hash=False)
    init_from: str | None = None
    quantize: Literal["int8", "nf4"] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "adapter.")
        require(self.rank >= 0, f"adapter.rank: must be positive, or 0 for no adapter, got {self.rank}")
        require(self.alpha is None or self.alpha > 0, f"adapter.alpha: must be positive or null, got {self.alpha}")
        require(0 <= self.dropout < 1, f"adapter.dropout: must be at least 0 and below 1, got {self.dropout}")
        known = (*LINEAR_LAYERS, "lm_head", "all-linear")
        for name in self.targets:
            require(name in known, f"adapter.targets: CodeGen has no {name!r}; it has {', '.join(known)}")
        require(bool(self.targets), f"adapter.targets: must not be empty; choose from {', '.join(known)}")
        for name in ("layers", "trainable_tokens"):
            values = getattr(self, name) or []
            require(len(set(values)) == len(values), f"adapter.{name}: must not have duplicates, got {values}")
            require(all(value >= 0 for value in values), f"adapter.{name}: must not be negative, got {values}")
        require(bool(self.rank) or self.targets == ["all-linear"], "adapter.targets: requires adapter.rank")
        for name in ("alpha", "rslora", "dropout", "layers", "trainable_tokens", "init_from", "quantize"):
            require(bool(self.rank) or not getattr(self, name), f"adapter.{name}: requires adapter.rank")

    def check_model(self, model: CodeGenConfig) -> None:
        """Raise `UserError` for a layer or token that the model does not have."""
        for name, size in (("layers", model.n_layer), ("trainable_tokens", model.vocab_size)):
            for value in getattr(self, name) or []:
                require(value < size, f"adapter.{name}: must be below {size}, got {value}")

    @property
    def modules(self) -> tuple[str, ...]:
        """The targets, with all-linear replaced by the names for which it stands."""
        named = {*self.targets, *(LINEAR_LAYERS if "all-linear" in self.targets else ())}
        return tuple(name for name in (*LINEAR_LAYERS, "lm_head") if name in named)

    @property
    def scale(self) -> float:
        """The factor of the updates."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warmup, half-cosine decay and a flat tail (jaxformer's model.py and utils.py).

    Attributes:
        learning_rate: learning rate at the end of warmup.
        end_learning_rate: learning rate after the cosine, until the end of the run.
        warmup_steps: steps of linear warmup from 0; the first update therefore has learning rate 0.
        decay_steps: steps of cosine decay, counted from the end of warmup; 0: until the end of the run.
        weight_decay: decoupled weight decay, multiplied by the learning rate.
        decay_mask: kernels: matrices and embeddings only; jaxformer: as in the authors' code, also every
            block's LayerNorm parameters and MLP biases.
        clip_norm: largest global norm of the gradient.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: constant added to the square root of the second moment.
    """

    learning_rate: float
    end_learning_rate: float
    warmup_steps: int
    decay_steps: int = 0
    weight_decay: float = 0.1
    decay_mask: Literal["kernels", "jaxformer"] = "kernels"
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.")
        for name in ("learning_rate", "end_learning_rate", "warmup_steps", "decay_steps", "weight_decay"):
            require(getattr(self, name) >= 0, f"optimizer.{name}: must not be negative, got {getattr(self, name)}")
        for name in ("clip_norm", "eps"):
            require(getattr(self, name) > 0, f"optimizer.{name}: must be positive, got {getattr(self, name)}")
        for name in ("b1", "b2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}: must be in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop.

    Attributes:
        batch_size: rows per update, over all devices and micro-batches.
        steps: number of updates.
        epochs: passes over the data, which replace steps; for a mixture, until each source has been seen this often.
        gradient_accumulation_steps: micro-batches per update; only reduces memory.
        z_loss: weight of the squared log-partition in the loss; the authors use 1e-4.
        remat: values saved per block for the backward pass, besides its input; the rest is recomputed. full:
            nothing; attention: the output of attention; qkv_attention: also q, k and v; dots: also the MLP's inner
            states, so no matrix product is recomputed; none: everything except gathered weights; auto: the first of
            dots, qkv_attention, attention and full that is estimated to fit the device.
        log_every: steps between log lines.
        eval_every: steps between validations; scheduled checkpoints are validated too.
        eval_batches: maximum number of batches per validation.
        sample_prompts: prompts completed greedily at every validation, for inspection.
        sample_tokens: new tokens per sample prompt.
        max_bad_steps: consecutive steps that may be skipped before the run stops. A step's update is skipped if its
            loss or gradient is not finite, or if spike_sigmas rejects it.
        spike_sigmas: skip a step whose gradient norm is this many standard deviations above its running mean (over
            about 100 steps); applies after 100 good steps; null: skip only non-finite steps.
        wandb_project: also log to this project of Weights & Biases.
    """

    batch_size: int
    steps: int = 0
    epochs: float | None = None
    gradient_accumulation_steps: int = 1
    z_loss: float = 0.0
    remat: Literal["auto", "none", "dots", "qkv_attention", "attention", "full"] = "auto"
    log_every: int = 10
    eval_every: int = 1000
    eval_batches: int = 16
    sample_prompts: list[str] = field(default_factory=list, hash=False)
    sample_tokens: int = 64
    max_bad_steps: int = 10
    spike_sigmas: float | None = None
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "training.")
        positive = ("batch_size", "gradient_accumulation_steps", "log_every", "eval_every", "eval_batches")
        for name in (*positive, "sample_tokens", "max_bad_steps"):
            require(getattr(self, name) > 0, f"training.{name}: must be positive, got {getattr(self, name)}")
        require(
            self.steps > 0 or (self.steps == 0 and self.epochs is not None),
            f"training.steps: must be positive, got {self.steps}; or set training.epochs",
        )
        require(self.epochs is None or self.epochs > 0, f"training.epochs: must be positive, got {self.epochs}")
        require(
            self.spike_sigmas is None or self.spike_sigmas > 0,
            f"training.spike_sigmas: must be positive or null, got {self.spike_sigmas}",
        )
        require(all(self.sample_prompts), "training.sample_prompts: prompts must not be empty")
        require(self.z_loss >= 0, f"training.z_loss: must not be negative, got {self.z_loss}")
        require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"training.batch_size: must be divisible by training.gradient_accumulation_steps = "
            f"{self.gradient_accumulation_steps}, got {self.batch_size}",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved and how many are kept.

    Attributes:
        save_every: steps between checkpoints; the last step is saved too.
        keep_latest: number of newest checkpoints to keep; the one with the best validation loss is kept as well.
    """

    save_every: int = 1000
    keep_latest: int = 2

    def __post_init__(self) -> None:
        check_fields(self, "checkpoint.")
        for name in ("save_every", "keep_latest"):
            require(getattr(self, name) > 0, f"checkpoint.{name}: must be positive, got {getattr(self, name)}")


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one axis may be -1 to use all remaining devices.

    >>> mesh = MeshConfig(data=-1, fsdp=1, tensor=1)  # all devices share the rows of a batch
    >>> model = codegen_jax.load("runs/double", mesh=mesh)

    Attributes:
        data: number of parameter replicas; each processes its own rows of the batch.
        fsdp: number of shards of the parameters, moments and batch.
        tensor: number of shards of the heads, MLP and vocabulary.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "mesh.")
        sizes = dataclasses.astuple(self)
        for axis, size in zip(("data", "fsdp", "tensor"), sizes, strict=True):
            require(
                size > 0 or size == -1, f"mesh.{axis}: must be positive, or -1 for all remaining devices, got {size}"
            )
        require(sizes.count(-1) <= 1, "mesh: only one axis may be -1")


@dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run, one per host, find each other.

    Attributes:
        coordinator: auto on Cloud TPU, Slurm, Kubernetes and MPI; otherwise process 0's host:port; null: one process.
        num_processes: number of processes in the run; required with host:port.
        process_id: index of this process, starting at 0; required with host:port.
        timeout: seconds to wait for the other processes at startup.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    timeout: int = 300

    def __post_init__(self) -> None:
        check_fields(self, "distributed.")
        explicit = self.coordinator not in (None, "auto")
        for name in ("num_processes", "process_id"):
            is_set = getattr(self, name) is not None
            require(is_set or not explicit, f"distributed.{name}: required with distributed.coordinator=host:port")
            require(explicit or not is_set, f"distributed.{name}: requires distributed.coordinator=host:port")
        if explicit:
            host, _, port = str(self.coordinator).rpartition(":")
            require(
                bool(host) and port.isdigit(),
                f"distributed.coordinator: must be auto or host:port, got {self.coordinator!r}",
            )
            require(
                0 <= (self.process_id or 0) < (self.num_processes or 0),
                f"distributed.process_id: must be at least 0 and below num_processes = {self.num_processes}, got "
                f"{self.process_id}",
            )
        require(self.timeout > 0, f"distributed.timeout: must be positive, got {self.timeout}")


@dataclass(frozen=True)
class ProfileConfig:
    """A window of steps that process 0 traces with jax.profiler, into OUTPUT/profile.

    Attributes:
        start: first step of the window.
        steps: number of steps to trace; 0: no trace.
    """

    start: int = 10
    steps: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "profile.")
        require(self.start > 0, f"profile.start: must be positive, got {self.start}")
        require(self.steps >= 0, f"profile.steps: must not be negative, got {self.steps}")


@dataclass(frozen=True)
class RunConfig:
    """One training run; the contents of a file in configs/.

    Attributes:
        output: folder for checkpoints, metrics and plots.
        resume: auto: resume a stopped run in `output`; never: fail if `output` already has checkpoints.
        init_from: model whose weights the run starts from, with a fresh optimizer and schedule; null: random weights.
        init_adapters: adapters added to the weights of init_from, as FOLDER or FOLDER=WEIGHT.
        seed: seed of the initial weights, the data order and dropout.
    """

    output: str
    model: CodeGenConfig
    data: DataConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    resume: Literal["auto", "never"] = "auto"
    init_from: str | None = None
    init_adapters: list[str] = field(default_factory=list, hash=False)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.data.sequence_length <= self.model.n_positions,
            f"data.sequence_length: must be at most model.n_positions = {self.model.n_positions}, got "
            f"{self.data.sequence_length}",
        )
        require_seed("seed", self.seed)
        for name, is_set in (("adapter.rank", self.adapter.rank), ("init_adapters", self.init_adapters)):
            require(self.init_from is not None or not is_set, f"{name}: requires init_from, the model to adapt")
        require(
            not (self.adapter.rank and self.model.embedding_bias),
            "model.embedding_bias: must be false with adapter.rank, since adapters are for models with folded biases",
        )
        self.adapter.check_model(self.model)

    @property
    def flops_per_token(self) -> int:
        """Model FLOPs to train on one token; see `CodeGenConfig.flops_per_token`."""
        return self.model.flops_per_token(self.data.sequence_length, is_frozen=bool(self.adapter.rank))

    @property
    def name(self) -> str:
        """The last component of the output path."""
        return self.output.rstrip("/").rpartition("/")[2]

    def to_dict(self) -> dict[str, Any]:
        """The config as nested dicts of plain values, as in YAML."""
        return dataclasses.asdict(self)
