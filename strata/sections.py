"""The fields of a configuration, section by section: what each means, its default and its bounds.

The defaults are the Strata recipe at the size of `nano`. `strata/config.py` puts the sections
together; the command line is made from them, with the comments as its help.
"""

from dataclasses import dataclass
from typing import Literal

from strata.fields import (
    OPTIMIZER_RULES,
    check_doubling,
    check_optimizer_name,
    check_section,
    number,
    positive,
)


@dataclass(frozen=True)
class ModelConfig:
    """What the transformer is. The defaults are the Strata recipe at the size of `nano`."""

    # Tokens the model knows; the data's tokenizer is truncated to it. 86,400 = 675 x 128.
    vocab_size: int = number(4_096, low=300)
    # Transformer blocks, one attention and one feed-forward layer each.
    n_layers: int = number(4, low=1)
    # Attention heads a block.
    n_heads: int = number(3, low=1)
    # Width of the residual stream (d_model).
    width: int = number(192, low=2)
    # Tokens the model sees at once.
    context_length: int = number(256, low=2)
    # Width of one head; 0 = width / n_heads.
    head_dim: int = number(0, low=0)
    # Width of the feed-forward layer over the width of the stream (4 in Vaswani et al., 2017).
    mlp_ratio: float = positive(4.0)
    # "rmsnorm" without learned gains (Zhang and Sennrich, 2019) or GPT-3's "layernorm".
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    # "relu2", the square of ReLU (So et al., 2021), or GPT-3's "gelu".
    activation: Literal["relu2", "gelu"] = "relu2"
    # "rotary" embeddings (Su et al., 2021) or GPT-3's "learned" ones.
    positions: Literal["rotary", "learned"] = "rotary"
    # Base of the rotary wavelengths (10,000 in Su et al., 2021, section 3.4.2).
    rotary_base: float = positive(10_000.0)
    # Bias vectors in linear and normalisation layers, as GPT-3 has them.
    biases: bool = False
    # Normalise queries and keys head by head (Henry et al., 2020).
    qk_norm: bool = True
    # Start the projections back into the stream, and an untied head, at zero.
    zero_init_projections: bool = True
    # One matrix for the input embedding and the output head (Press and Wolf, 2017).
    tie_embeddings: bool = True
    # Logits are softcap * tanh(logits / softcap) (Gemma 2, 2024), at most 60; 0 = off.
    logit_softcap: float = number(15.0, low=0, high=60)
    # Each block starts from a learned mix of the stream and the normalised input embedding.
    residual_scalars: bool = True
    # Tokens that a position of a windowed layer sees, itself included (Beltagy et al., 2020);
    # 0 = every layer sees the whole context.
    window_length: int = number(0, low=0)
    # Of windowed layers, every n-th and the last see the whole context (nanochat: one in four).
    full_attention_every: int = number(4, low=1)

    def __post_init__(self) -> None:
        check_section(self, "model")
        if not self.head_dim and self.width % self.n_heads:
            raise ValueError(
                f"model.width = {self.width}: expected a multiple of model.n_heads = "
                f"{self.n_heads}, or model.head_dim to be given"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(
                f"model.head_dim = {self.head_size}: expected an even number, since rotary "
                "embeddings turn pairs of dimensions"
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.width // self.n_heads

    @property
    def mlp_width(self) -> int:
        """Width of the feed-forward layer."""
        return int(self.mlp_ratio * self.width)


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it becomes tokens."""

    # "installed", "files:GLOB[,GLOB]" or "hub:OWNER/NAME[@REVISION]", or several, each after its
    # weight, as in "0.7 installed + 0.3 files:GLOB"; "files:GLOB held-out files:GLOB" validates on
    # the second; see strata/data/corpus.py.
    corpus: str = "installed"
    # Column that holds the text, in JSON lines and Parquet.
    text_column: str = "text"
    # Share of the documents held out, chosen by the hash of their text.
    validation_fraction: float = number(0.01, low=0.0, high=0.5)
    # Tokens in the trained vocabulary: 256 bytes and the special tokens included.
    tokenizer_vocab_size: int = number(86_400, low=300)
    # How text is split into words before merging; see strata/tokenizer/scanner.py.
    pattern: Literal["strata", "gpt2", "cl100k"] = "strata"
    # Tokens in one shard file (4 bytes each).
    shard_tokens: int = number(1 << 25, low=1 << 10)
    # How training rows are made: "stream" cuts the text wherever a row is full, "best-fit" only
    # documents longer than a row (Ding et al., 2024); see strata/data/packing.py.
    packing: Literal["stream", "best-fit"] = "stream"
    # Whether a token sees its own document alone; nanochat measured no gain, so off.
    document_masks: bool = False

    def __post_init__(self) -> None:
        check_section(self, "data")


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates. Parameters are grouped by role; see training/optimizer.py."""

    # "muon", "adamw", "lion", "sgd", "adafactor" (training/groups.py) or a class of torch.optim.
    name: str = "muon"
    # Peak rate of the matrices (Muon's is the spectral size of an update; Jordan et al., 2024).
    learning_rate: float = positive(0.02)
    # Peak rate of the embeddings; 0 = learning_rate.
    embedding_learning_rate: float = number(0.01, low=0)
    # Peak rate of an untied head; 0 = learning_rate.
    head_learning_rate: float = number(0.004, low=0)
    # Peak rate of gains, biases and residual scalars; 0 = learning_rate.
    scalar_learning_rate: float = number(0.01, low=0)
    # Decoupled weight decay (Loshchilov and Hutter, 2019), of matrices alone under "muon".
    weight_decay: float = number(0.0, low=0)
    # Weight decay over its peak: "constant", the "rate"'s ratio (Defazio, 2025) or "linear" to 0.
    decay_schedule: Literal["constant", "rate", "linear"] = "constant"
    # Decay only the weights whose sign is that of their update (Chen et al., 2025).
    cautious_decay: bool = False
    # AdamW's decay of the mean gradient (GPT-3, appendix B); Lion's first beta.
    beta1: float = number(0.9, low=0, high=0.9999)
    # AdamW's decay of the mean squared gradient (paper/notes.md; 0.95 in GPT-3, appendix B);
    # NorMuon's; Lion's second beta.
    beta2: float = number(0.99, low=0, high=0.9999)
    # Added to AdamW's denominator (GPT-3, appendix B).
    epsilon: float = positive(1e-8)
    # Muon's momentum (Jordan et al., 2024), and SGD's.
    momentum: float = number(0.95, low=0, high=0.9999)
    # Momentum where its warm-up begins; 0 = no warm-up. 0.85 in modded-nanogpt (Jordan, 2024).
    momentum_start: float = number(0.0, low=0, high=0.9999)
    # Newton-Schulz iterations of an update of Muon (paper/notes.md; 5 in Jordan et al., 2024).
    newton_schulz_steps: int = number(4, low=1, high=20)
    # Even out the rows of Muon's updates by their mean square so far (Li et al., 2025, "NorMuon").
    normalise_rows: bool = True
    # Width at which AdamW's or Lion's rates were found, to be scaled from; 0 = rates as given.
    reference_width: int = number(0, low=0)
    # Power of reference_width / width in that scale: 1 in Yang et al. (2022), 0.5 in nanochat.
    width_exponent: float = number(0.5, low=0, high=1)

    def __post_init__(self) -> None:
        check_section(self, "optimizer")
        check_optimizer_name(self.name)
        for name, rules in (
            ("cautious_decay", OPTIMIZER_RULES),
            ("reference_width", ("muon", "adamw", "lion")),
        ):
            if getattr(self, name) and self.name not in rules:
                raise ValueError(
                    f"optimizer.{name} has no effect under optimizer.name = {self.name!r}: "
                    f"expected one of {', '.join(rules)}"
                )

    @property
    def from_pytorch(self) -> bool:
        """Whether `name` is a class of torch.optim, not a rule of ours."""
        return self.name not in OPTIMIZER_RULES


@dataclass(frozen=True)
class TrainingConfig:
    """The loop: how long, in what batches, with what schedule, and what is written down."""

    # Updates in the whole run.
    max_steps: int = number(225, low=1)
    # Sequences an update, over all processes and micro-batches.
    batch_size: int = number(8, low=1)
    # Sequences in one forward pass of one process; 0 = as many as its memory holds.
    micro_batch_size: int = number(0, low=0)
    # Sequences in the first updates, doubled until it is batch_size; 0 = batch_size from the start.
    initial_batch_size: int = number(0, low=0)
    # Updates in which the batch grows.
    batch_growth_steps: int = number(0, low=0)
    # Tokens a sequence in the first updates, doubled up to the context; 0 = context_length.
    initial_context_length: int = number(0, low=0)
    # Updates in which sequences grow.
    context_growth_steps: int = number(0, low=0)
    # Warm-up, then: "wsd", a trapezoid (Hu et al., 2024); GPT-3's "cosine"; "linear"; "constant".
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    # Updates in which the rate rises linearly from zero.
    warmup_steps: int = number(10, low=0)
    # Share of the run in which the rate falls: the last of it ("wsd"), the first ("cosine").
    decay_fraction: float = number(0.5, low=0, high=1)
    # Updates in which momentum rises linearly from optimizer.momentum_start; 0 = none.
    momentum_warmup_steps: int = number(0, low=0)
    # Rate at the end over the peak rate.
    final_rate_ratio: float = number(0.0, low=0, high=1)
    # Largest global norm of the gradient; 0 = no clipping. 1.0 in GPT-3, appendix B.
    gradient_clip: float = number(1.0, low=0)
    # A loss this many standard deviations above the usual, three times, is a spike; 0 = none is.
    spike_deviations: float = number(8.0, low=0)
    # Times that a run may go back to its last checkpoint after a spike or a loss that is no number.
    max_rollbacks: int = number(3, low=0)
    # Updates between checkpoints; 0 = none but the final weights.
    checkpoint_every: int = number(100, low=0)
    # Checkpoints kept, newest first.
    keep_checkpoints: int = number(2, low=1)
    # Updates between checkpoints that are kept for good; 0 = none is.
    keep_every: int = number(0, low=0)
    # What a full disk or a lost folder does to the run: "stop" ends it cleanly, "continue" trains
    # on, holds the log in memory and tries again at the next checkpoint.
    on_write_failure: Literal["stop", "continue"] = "stop"
    # Updates between validations; the last update is always followed by one.
    validate_every: int = number(25, low=1)
    # Held-out sequences of context_length tokens in a validation.
    validation_sequences: int = number(96, low=1)
    # Updates between measurements of gradients and updates by role, for the log; 0 = none.
    measure_every: int = number(25, low=0)
    # Updates between text samples; 0 = only at the end.
    sample_every: int = number(0, low=0)
    # Updates between scores on evaluation.training_tasks, the last one scored too; 0 = none.
    evaluate_every: int = number(0, low=0)
    # Seed of initialisation, shuffling and sampling.
    seed: int = number(0, low=0)
    # Where to train; "auto" takes CUDA, then Apple's MPS, then the CPU.
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    # Arithmetic of matrix products; "auto" takes bfloat16 where the chip has it in hardware, and
    # "float8" in the blocks of models wide enough to gain by it (training/device.py).
    precision: Literal["auto", "float32", "bfloat16", "float8"] = "auto"
    # What several processes share: "ddp" the batch, "fsdp" the model too (FSDP2), "hsdp" the model
    # within a node; "auto" takes the first that fits the memory (training/parallelism.py).
    parallelism: Literal["auto", "ddp", "fsdp", "hsdp"] = "auto"
    # torch.compile; "auto" compiles on CUDA, where it pays for itself.
    compile: Literal["auto", "on", "off"] = "auto"
    # CPU threads; 0 = one a core.
    threads: int = number(0, low=0)
    # Project of Weights & Biases that gets the run's curves too; "" = none.
    wandb_project: str = ""

    def __post_init__(self) -> None:
        check_section(self, "training")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"training.micro_batch_size = {self.micro_batch_size}: expected a divisor of "
                f"training.batch_size = {self.batch_size}"
            )
        for name, growth in (
            ("batch_size", self.batch_growth_steps),
            ("context_length", self.context_growth_steps),
        ):
            start = getattr(self, f"initial_{name}")
            if bool(start) != bool(growth):
                raise ValueError(
                    f"training.initial_{name} = {start} and training.{name.partition('_')[0]}"
                    f"_growth_steps = {growth}: expected both or neither"
                )
        check_doubling("batch_size", self.initial_batch_size, self.batch_size)
        if self.warmup_steps > self.max_steps:
            raise ValueError(
                f"training.warmup_steps = {self.warmup_steps}: expected at most "
                f"training.max_steps = {self.max_steps}"
            )


@dataclass(frozen=True)
class EvaluationConfig:
    """What the model is asked, in training and after it, and how sure the answer has to be."""

    # Names of tasks; see strata/evaluation/tasks.py.
    tasks: tuple[str, ...] = ("cloze", "continuation")
    # Items a task; 0 = all.
    limit: int = number(200, low=0)
    # Solved examples that stand before each item (Brown et al., 2020, section 2); 0 = zero-shot.
    shots: int = number(0, low=0)
    # Names of tasks for training.evaluate_every.
    training_tasks: tuple[str, ...] = ("cloze", "continuation")
    # Items a task there; 0 = all.
    training_limit: int = number(100, low=0)
    # Folder with the data of the tasks that need a download; "" = none.
    data_dir: str = ""
    # Tokens in one forward pass.
    batch_tokens: int = number(8_192, low=1)
    # Resamples of a bootstrap interval.
    bootstrap_samples: int = number(2_000, low=100)
    # Coverage of every interval.
    confidence: float = number(0.95, low=0.5, high=0.999)

    def __post_init__(self) -> None:
        check_section(self, "evaluation")
