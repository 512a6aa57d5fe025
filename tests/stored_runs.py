"""Folders of finished runs, as a suite leaves them, made without training."""

import json

from strata.config import Config
from strata.model import count_parameters, flops_per_token

BASE = Config().override(
    {
        "model.vocab_size": 300,
        "model.n_layers": 1,
        "model.n_heads": 1,
        "model.width": 8,
        "model.context_length": 8,
        "training.max_steps": 4,
        "training.batch_size": 2,
        "training.warmup_steps": 1,
        "training.validate_every": 2,
    }
)


def write_run(suite, variant, seed, changes=None, *, loss=2.0, finished=True, seconds=0.5):
    """A run's folder below `suite`; every second step is validated, the loss ends at `loss`."""
    config = BASE.override({**(changes or {}), "training.seed": seed})
    folder = suite / f"{variant}-seed{seed}"
    folder.mkdir(parents=True)
    config.save(folder / "config.toml")
    provenance = {
        "commit": "c0ffee", "dirty": False, "code": "00ff", "started": "2026-01-02T03:04:05+00:00",
        "packages": {"torch": "2.13.0"}, "processor": "a CPU", "corpus": "cafe",
        "decisions": ["torch.compile off: 5 tokens/s", "https://pytorch.org/docs"],
    }  # fmt: skip
    (folder / "provenance.json").write_text(json.dumps(provenance))
    steps, per_step = config.training.max_steps, config.training.batch_size * 8
    lines = []
    for step in range(1, steps + 1 if finished else 3):
        line = {
            "step": step,
            "loss": 1.0,
            "tokens": step * per_step,
            "timing": {"seconds": seconds, "memory_bytes": 1000 + step},
        }
        if step % 2 == 0:
            line["validation_bits_per_byte"] = loss + 0.1 * (steps - step) / 3
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    counts = count_parameters(config.model)
    summary = {
        "config_hash": config.hash(),
        "parameters": counts["total"],
        "body_parameters": counts["body"],
        "flops_per_token": flops_per_token(config.model),
        "steps": steps,
        "stopped": "",
        "tokens": steps * per_step,
        "flops": steps * per_step * flops_per_token(config.model),
        "validation_bits_per_byte": loss,
        "timing": {"seconds": steps * seconds, "validation_seconds": 0.25},
    }
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder
