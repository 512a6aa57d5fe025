"""Text to batches: corpus (documents) → shards (tokens on disk) → loader (rows of them).

`prepare` does all of it for one configuration and keeps what it made in `cache_dir()`.
"""

from strata.data.corpus import Corpus, SourceSummary, absolute_spec
from strata.data.loader import (
    IGNORED,
    Batch,
    Loader,
    LoaderState,
    document_numbers,
    read_windows,
    spread_windows,
)
from strata.data.packing import PackingSummary, measure_packing
from strata.data.preparation import (
    Prepared,
    encode_files,
    prepare,
    prepare_shards,
    prepare_tokenizer,
)
from strata.data.published import published_tokenizer
from strata.data.shards import TokenShards, build_shards
from strata.storage import cache_dir

__all__ = [
    "IGNORED",
    "Batch",
    "Corpus",
    "Loader",
    "LoaderState",
    "PackingSummary",
    "Prepared",
    "SourceSummary",
    "TokenShards",
    "absolute_spec",
    "build_shards",
    "cache_dir",
    "document_numbers",
    "encode_files",
    "measure_packing",
    "prepare",
    "prepare_shards",
    "prepare_tokenizer",
    "published_tokenizer",
    "read_windows",
    "spread_windows",
]
