"""Every choice that determines a run, as one tree of frozen dataclasses.

A `Config` has five sections, one for each thing that is configured: the model, the data, the
optimizer, the training loop and the evaluation. Defaults are the Strata recipe; a preset is a
difference from them; the GPT-3 recipe is another difference, so that an ablation between the two
is nothing but a difference of configurations.

    config = Config.preset("nano").override({"model.n_layers": 6})
    config.save("config.toml")
    assert Config.load("config.toml") == config

A value is checked when the object is built, and the message says which field, which value and
what is allowed. What fields there are stands in `strata/sections.py`; the command line is made from
the same classes (`strata train nano --help`).
"""

import dataclasses
import hashlib
import json
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from strata.fields import check_doubling, nearest
from strata.presets import PRESETS
from strata.sections import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)
from strata.storage import write_whole

__all__ = [
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrainingConfig",
]


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run.

    Raises:
        ValueError: from construction, `override` and `load`, naming the field, the value and
            what is allowed.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check_doubling(
            "context_length", self.training.initial_context_length, self.model.context_length
        )
        if self.model.vocab_size > self.data.tokenizer_vocab_size:
            raise ValueError(
                f"model.vocab_size = {self.model.vocab_size}: expected at most "
                f"data.tokenizer_vocab_size = {self.data.tokenizer_vocab_size}"
            )
        start, steps = self.optimizer.momentum_start, self.training.momentum_warmup_steps
        if bool(start) != bool(steps):
            raise ValueError(
                f"optimizer.momentum_start = {start} and training.momentum_warmup_steps = {steps}: "
                "expected both or neither, since one does nothing without the other"
            )

    @staticmethod
    def presets() -> tuple[str, ...]:
        """The names that `preset` takes, smallest first."""
        return tuple(PRESETS)

    @classmethod
    def preset(cls, name: str) -> Self:
        """A configuration by name: `nano` … `xl`, or `gpt3-small` … `gpt3-175b`."""
        if name not in PRESETS:
            raise ValueError(
                f"preset = {name!r}: expected one of {', '.join(PRESETS)}"
                + nearest(name, tuple(PRESETS))
            )
        return cls().override(PRESETS[name])

    def override(self, changes: Mapping[str, Any]) -> Self:
        """A copy with some fields changed, given by dotted name: `{"model.n_layers": 8}`."""
        tree = self.to_dict()
        for name, value in changes.items():
            section, _, key = name.partition(".")
            if section not in tree or key not in tree[section]:
                known = [f"{part}.{inner}" for part in tree for inner in tree[part]]
                raise ValueError(f"unknown field {name!r}{nearest(name, known)}")
            tree[section][key] = value
        return self.from_dict(tree)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain values, section by section."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; what is absent takes its default."""
        sections = {}
        for section, values in tree.items():
            kinds = {item.name: item.default_factory for item in fields(cls)}
            if section not in kinds:
                raise ValueError(f"unknown section [{section}]{nearest(section, list(kinds))}")
            if not isinstance(values, Mapping):
                raise ValueError(f"{section} = {values!r}: expected a section of fields")
            kind = typing.cast(type, kinds[section])
            known = [item.name for item in fields(kind)]
            for key in values:
                if key not in known:
                    raise ValueError(f"unknown field {section}.{key}{nearest(key, known)}")
            sections[section] = kind(**values)
        return cls(**sections)

    def save(self, path: str | Path) -> None:
        """Write every field as TOML, losslessly; the file is replaced whole."""
        import tomli_w  # here, so that a GPU machine without it can train and measure

        write_whole(Path(path), tomli_w.dumps(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a TOML file written by `save` or by hand; the file's name is in every error.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not TOML, or a field or value is not known.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such configuration file")
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:  # of which tomllib.TOMLDecodeError is one
            raise ValueError(f"{path}: {error}") from error

    def hash(self) -> str:
        """16 hexadecimal digits that change when anything that determines the weights does."""
        tree = self.to_dict()
        del tree["evaluation"]
        for name in _WITHOUT_EFFECT:
            section, _, key = name.partition(".")
            del tree[section][key]
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: "Config") -> dict[str, tuple[Any, Any]]:
        """Dotted names of the fields that differ, with the value here and the value there."""
        mine, theirs = self.to_dict(), other.to_dict()
        return {
            f"{section}.{key}": (value, theirs[section][key])
            for section, values in mine.items()
            for key, value in values.items()
            if value != theirs[section][key]
        }


# What may change between two parts of one run, since no weight depends on it but by rounding.
_WITHOUT_EFFECT = (
    "data.shard_tokens",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.keep_every",
    "training.on_write_failure",
    "training.validate_every",
    "training.validation_sequences",
    "training.measure_every",
    "training.sample_every",
    "training.evaluate_every",
    "training.micro_batch_size",
    "training.device",
    "training.parallelism",
    "training.compile",
    "training.threads",
    "training.wandb_project",
)
