"""The named configurations: two recipes at many sizes, each a difference from the defaults.

`strata/sections.py` says what each field means, and its defaults are the Strata recipe at the size
of `nano`. Here stands what the other names change: larger sizes of the same recipe, and GPT-3's
recipe at the eight sizes of its paper.
"""

from typing import Any

# The GPT-3 recipe (Brown et al., 2020, section 2.1 and appendix B) as a difference from the
# defaults above. Attention is dense in every layer; GPT-3 alternated it with banded sparse
# attention. The ramp of the batch size over the first billions of tokens is left out.
GPT3_RECIPE: dict[str, Any] = {
    "model.norm": "layernorm",
    "model.activation": "gelu",
    "model.positions": "learned",
    "model.biases": True,
    "model.qk_norm": False,
    "model.zero_init_projections": False,
    "model.tie_embeddings": True,
    "model.logit_softcap": 0.0,
    "model.residual_scalars": False,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 6e-4,
    "optimizer.embedding_learning_rate": 0.0,
    "optimizer.head_learning_rate": 0.0,
    "optimizer.scalar_learning_rate": 0.0,
    "optimizer.weight_decay": 0.1,
    "optimizer.beta2": 0.95,
    "optimizer.normalise_rows": False,
    "training.schedule": "cosine",
    "training.decay_fraction": 260 / 300,
    "training.final_rate_ratio": 0.1,
}

# Table 2.1 of Brown et al. (2020): layers, width, heads, head size, batch in tokens, rate.
# Two rows do not multiply out as printed and are set to what gives the parameter counts of the
# paper's Table D.1: XL has 16 heads of 128 (printed: 24), 13B a width of 5,120 (printed: 5,140).
_GPT3_SIZES: dict[str, tuple[int, int, int, int, int, float]] = {
    "gpt3-small": (12, 768, 12, 64, 1 << 19, 6.0e-4),
    "gpt3-medium": (24, 1024, 16, 64, 1 << 19, 3.0e-4),
    "gpt3-large": (24, 1536, 16, 96, 1 << 19, 2.5e-4),
    "gpt3-xl": (24, 2048, 16, 128, 1 << 20, 2.0e-4),
    "gpt3-2.7b": (32, 2560, 32, 80, 1 << 20, 1.6e-4),
    "gpt3-6.7b": (32, 4096, 32, 128, 1 << 21, 1.2e-4),
    "gpt3-13b": (40, 5120, 40, 128, 1 << 21, 1.0e-4),
    "gpt3-175b": (96, 12288, 96, 128, 25 << 17, 0.6e-4),
}
_GPT3_TOKENS, _GPT3_WARMUP_TOKENS = 300e9, 375e6


def _gpt3_preset(name: str) -> dict[str, Any]:
    layers, width, heads, head_dim, batch_tokens, rate = _GPT3_SIZES[name]
    return {
        **GPT3_RECIPE,
        "model.vocab_size": 50_257,
        "model.n_layers": layers,
        "model.width": width,
        "model.n_heads": heads,
        "model.head_dim": head_dim,
        "model.context_length": 2_048,
        "optimizer.learning_rate": rate,
        "training.batch_size": batch_tokens // 2_048,
        "training.micro_batch_size": 8,
        "training.max_steps": round(_GPT3_TOKENS / batch_tokens),
        "training.warmup_steps": round(_GPT3_WARMUP_TOKENS / batch_tokens),
        "training.checkpoint_every": 1_000,
        "training.validate_every": 500,
        "training.validation_sequences": 1_024,
        "training.sample_every": 5_000,
        "training.evaluate_every": 5_000,
        "evaluation.limit": 0,
    }


def _strata_preset(layers: int, width: int, heads: int, tokens: float) -> dict[str, Any]:
    """A size for GPUs: 86,400 tokens, 2,048 of context, half a million tokens an update."""
    return {
        "model.vocab_size": 86_400,
        "model.n_layers": layers,
        "model.width": width,
        "model.n_heads": heads,
        "model.context_length": 2_048,
        "training.batch_size": 256,
        "training.micro_batch_size": 16,
        "training.max_steps": round(tokens / (256 * 2_048)),
        "training.warmup_steps": 100,
        "training.checkpoint_every": 500,
        "training.validate_every": 250,
        "training.validation_sequences": 1_024,
        "training.sample_every": 1_000,
        "training.evaluate_every": 500,
        "evaluation.limit": 0,
    }


# A preset is a difference from the defaults. Each of small, medium, large and xl has fewer
# parameters than the GPT-3 model of its name and is to see 20 tokens a parameter (Hoffmann et
# al., 2022), where GPT-3 saw 300 billion.
PRESETS: dict[str, dict[str, Any]] = {
    "nano": {},
    "micro": {
        "model.vocab_size": 16_384,
        "model.n_layers": 6,
        "model.width": 384,
        "model.n_heads": 6,
        "model.context_length": 512,
        "training.batch_size": 32,
        "training.micro_batch_size": 8,
        "training.max_steps": 4_000,
        "training.warmup_steps": 40,
        "training.validate_every": 200,
        "training.validation_sequences": 256,
        "training.sample_every": 1_000,
        "training.evaluate_every": 400,
        "evaluation.limit": 0,
    },
    "small": _strata_preset(12, 640, 10, 2.3e9),
    "medium": _strata_preset(20, 896, 14, 5.4e9),
    "large": _strata_preset(24, 1152, 9, 9.6e9),
    "xl": _strata_preset(28, 1536, 12, 18.5e9),
    **{name: _gpt3_preset(name) for name in _GPT3_SIZES},
}
