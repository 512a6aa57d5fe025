"""Text to batches: corpus (documents) → shards (tokens on disk) → loader (rows of them).

`prepare` does all of it for one configuration and keeps what it made in `cache_dir()`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from strata.storage import cache_dir as cache_dir

if TYPE_CHECKING:
    from strata.data.corpus import Corpus as Corpus
    from strata.data.corpus import SourceSummary as SourceSummary
    from strata.data.corpus import absolute_spec as absolute_spec
    from strata.data.loader import IGNORED as IGNORED
    from strata.data.loader import Batch as Batch
    from strata.data.loader import Loader as Loader
    from strata.data.loader import LoaderState as LoaderState
    from strata.data.loader import document_numbers as document_numbers
    from strata.data.loader import read_windows as read_windows
    from strata.data.loader import spread_windows as spread_windows
    from strata.data.packing import PackingSummary as PackingSummary
    from strata.data.packing import measure_packing as measure_packing
    from strata.data.preparation import Prepared as Prepared
    from strata.data.preparation import encode_files as encode_files
    from strata.data.preparation import prepare as prepare
    from strata.data.preparation import prepare_shards as prepare_shards
    from strata.data.preparation import prepare_tokenizer as prepare_tokenizer
    from strata.data.published import published_tokenizer as published_tokenizer
    from strata.data.shards import TokenShards as TokenShards
    from strata.data.shards import build_shards as build_shards

# Imported when first used: a transfer, which shows progress and no more, needs no PyTorch.
_NAMES = {
    "corpus": ["Corpus", "SourceSummary", "absolute_spec"],
    "loader": [
        "IGNORED",
        "Batch",
        "Loader",
        "LoaderState",
        "document_numbers",
        "read_windows",
        "spread_windows",
    ],
    "packing": ["PackingSummary", "measure_packing"],
    "preparation": [
        "Prepared",
        "encode_files",
        "prepare",
        "prepare_shards",
        "prepare_tokenizer",
    ],
    "published": ["published_tokenizer"],
    "shards": ["TokenShards", "build_shards"],
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_HOMES, "cache_dir"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'strata.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"strata.data.{_HOMES[name]}"), name)
