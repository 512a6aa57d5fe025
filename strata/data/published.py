"""The vocabularies of GPT-2 and GPT-4 as OpenAI published them, fetched once and kept.

    cache_dir()/vocabularies/vocab.bpe, encoder.json, cl100k_base.tiktoken

A file is used only if its SHA-256 is the one below, which is checked whenever it is read; so it
does not matter who put it there, and where there is no network, a copy can be put there by hand.
Copies that `tiktoken` keeps are used where TIKTOKEN_CACHE_DIR or DATA_GYM_CACHE_DIR names them.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import fsspec

from strata.data.cache import cache_dir, write_whole
from strata.tokenizer import Tokenizer

LARGEST = 1 << 24  # bytes; no published file has as many


class PublishedFile(NamedTuple):
    """Where a file lies, and the SHA-256 (hex) of its content."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


OPENAI = "https://openaipublic.blob.core.windows.net"
VOCAB_BPE = PublishedFile(
    f"{OPENAI}/gpt-2/encodings/main/vocab.bpe",
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)
ENCODER_JSON = PublishedFile(
    f"{OPENAI}/gpt-2/encodings/main/encoder.json",
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
)
CL100K = PublishedFile(
    f"{OPENAI}/encodings/cl100k_base.tiktoken",
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
)
CL100K_SPECIAL_TOKENS = {
    "<|endoftext|>": 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}


def published_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of GPT-2, "gpt2", with 50,257 tokens, or of GPT-4, "cl100k", with 100,261.

    Raises:
        ValueError: there is no vocabulary of that name, or a file is not the published one.
        ConnectionError: a file is not here yet and cannot be fetched.
    """
    if name == "gpt2":
        return Tokenizer.from_gpt2(published_file(VOCAB_BPE), published_file(ENCODER_JSON))
    if name == "cl100k":
        return Tokenizer.from_tiktoken(published_file(CL100K), "cl100k", CL100K_SPECIAL_TOKENS)
    raise ValueError(f"{name!r} is no published vocabulary: expected 'gpt2' or 'cl100k'")


def published_file(file: PublishedFile) -> Path:
    """The path of a published file, fetched if it is not here yet and verified in any case.

    Raises:
        ValueError: what is there, or what came, is not the published file.
        ConnectionError: it is not here and cannot be fetched.
    """
    path = cache_dir() / "vocabularies" / file.name
    if path.exists():
        _check(path.read_bytes(), file, f"{path}: delete it to have it fetched again")
        return path
    content = _kept_by_tiktoken(file)
    if content is None:
        content = _fetched(file, path)
    write_whole(path, lambda temporary: temporary.write_bytes(content))
    return path


def _kept_by_tiktoken(file: PublishedFile) -> bytes | None:
    """tiktoken's copy, which is named by the SHA-1 of the URL, if there is a sound one."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", ""))
    copy = Path(folder, hashlib.sha1(file.url.encode()).hexdigest())
    if not folder or not copy.is_file():
        return None
    content = copy.read_bytes()
    return content if hashlib.sha256(content).hexdigest() == file.sha256 else None


def _fetched(file: PublishedFile, path: Path) -> bytes:
    try:
        with fsspec.open(file.url, "rb") as source:
            content: bytes = source.read(LARGEST)
    except Exception as error:  # which classes mean "no network" differs between protocols
        raise ConnectionError(
            f"cannot fetch {file.url} ({error or type(error).__name__}): where there is no "
            f"network, put that file at {path}"
        ) from error
    _check(content, file, f"what {file.url} sent")
    return content


def _check(content: bytes, file: PublishedFile, where: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise ValueError(
            f"this is not the published {file.name}: expected SHA-256 {file.sha256}, found {found} "
            f"in {where}"
        )
