"""Reading text at the speed of memory: what the kernels share, and those who call them.

A kernel here is a Python function that Numba compiles to machine code on its first call. The code
is kept on disk, so only the first use after an installation waits for the compiler. Numba would
look at the file alone that a kernel stands in to see whether it has changed; since kernels call
kernels of other files, the code is kept in a folder named after the hash of all of this package.

Text is a NumPy array of UTF-8 bytes with PADDING zero bytes before and after it. Kernels read it
through addresses, eight bytes at once where they can, which array indexing cannot do.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from strata.storage import cache_dir

Function = TypeVar("Function", bound=Callable[..., Any])
Integer = int | np.int64  # kernels know no other: NumPy's when they say np.int64, else Python's

Word = np.uint64  # eight bytes, the first lowest; unsigned, so that sums may overflow
MIXER, THIRTY_TWO = Word(0x9E3779B97F4A7C15), Word(32)  # for hashes: odd, half of its bits set
HIGH_BITS, LOW_BITS = Word(0x8080808080808080), Word(0x7F7F7F7F7F7F7F7F)
PROBE_BYTES = 1 << 22  # about what the machine code of all kernels takes on the disk
TEXT_OVERHEAD = 64  # bytes, about, that Python needs for a str beyond its characters
PADDING = 8  # so that eight bytes can be read up to, and from, any byte of the text


def kernel(function: Function) -> Function:
    """Compiles `function` on its first call, to run without the interpreter's lock."""
    return compiled(function, nogil=True, no_cfunc_wrapper=True)


def inner(function: Function) -> Function:
    """A kernel that only kernels call: compiled faster, since Python needs no way into it."""
    return compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def compiled(function: Function, **options: Any) -> Function:
    """Compiles with these options of Numba and keeps the result in `code_folder`, if there is one.

    Else, and for a function that stands in no file, every process compiles for itself.
    """
    settings: Any = numba.config
    folder = code_folder(settings.CACHE_DIR)
    if folder is None:
        return cast(Function, numba.njit(**options)(function))
    chosen, settings.CACHE_DIR = settings.CACHE_DIR, str(folder)
    try:
        return cast(Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:
        return cast(Function, numba.njit(**options)(function))
    finally:
        settings.CACHE_DIR = chosen


@cache
def code_folder(chosen: str) -> Path | None:
    """Where machine code is kept, a folder named after the hash of this package's sources.

    It lies in the folder that NUMBA_CACHE_DIR names, `chosen`; or else beside Python's own code;
    or, if that cannot be written, in the cache of prepared data. None if that cannot be either.
    Folders of earlier sources stay until `make clean`.
    """
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted(package.glob("*.py")):
        digest.update(source.read_bytes())
    name = digest.hexdigest()[:16]
    beside = package / "__pycache__"
    for place in (Path(chosen),) if chosen else (beside, cache_dir() / "kernels"):
        folder = place / name
        try:
            new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(PROBE_BYTES if new else 1))
        except OSError:
            continue
        return folder
    return None


def repeated(byte: int) -> Word:
    """A word of eight such bytes."""
    return Word(byte * 0x0101010101010101)


def check_text(text: object) -> None:
    """Raises ValueError if `text` is no str."""
    if not isinstance(text, str):
        raise ValueError(f"a text must be a str, not {type(text).__name__}: {text!r:.80}")


def text_bytes(text: str) -> bytes:
    """The UTF-8 bytes of `text`; a lone surrogate, which has none, counts as U+FFFD.

    Raises ValueError if it is no str.
    """
    check_text(text)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def in_batches(texts: Iterable[str], n_characters: int) -> Iterator[list[str]]:
    """The texts in lists, each ending with the text that brings it to so many characters.

    Raises ValueError if one is no str, or `texts` is a single str.
    """
    if isinstance(texts, str):
        raise ValueError(f"expected several texts, not one str: {texts!r:.80}")
    batch: list[str] = []
    size = 0
    for text in texts:
        check_text(text)
        batch.append(text)
        size += len(text) + TEXT_OVERHEAD
        if size >= n_characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def thread_count(threads: int | None) -> int:
    """How many threads to use: `threads`, or if that is None, as many as this process has cores.

    Raises ValueError if `threads` is less than 1.
    """
    if threads is None:
        # Not every system can say which cores this process may use.
        return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if threads < 1:
        raise ValueError(f"threads={threads}: expected a number of at least 1, or None")
    return threads


def padded(data: bytes) -> NDArray[np.uint8]:
    """`data` as an array ready for the kernels, (len(data) + PADDING,)."""
    around = bytes(PADDING)
    return np.frombuffer(around + data + around, dtype=np.uint8)[PADDING:]


def _load_byte(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        return builder.zext(builder.load(pointer), ir.IntType(64))

    return types.int64(types.int64), generate


def _load_word(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(types.int64), generate


def _store_word(typing_context: Any, address: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        builder.store(arguments[1], pointer, align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.uint64), generate


def _prefetch(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, nowhere = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [nowhere, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [nowhere], kind)
        pointer = builder.inttoptr(arguments[0], nowhere)
        builder.call(fetch, [pointer, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.none(types.int64), generate


def _trailing_zeros(typing_context: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return types.int64(types.uint64), generate


# What Python cannot say, said in LLVM's terms.
load_byte = cast(Callable[[int], int], intrinsic(_load_byte))
"""load_byte(address) -> the byte at this address, 0 to 255."""
load_word = cast(Callable[[int], Word], intrinsic(_load_word))
"""load_word(address) -> the eight bytes from this address on, the first lowest (little-endian)."""

store_word = cast(Callable[[int, Word], None], intrinsic(_store_word))
"""store_word(address, word): writes what `load_word` would read."""
prefetch = cast(Callable[[int], None], intrinsic(_prefetch))
"""prefetch(address): asks the memory for what will be read there soon."""
trailing_zeros = cast(Callable[[Word], int], intrinsic(_trailing_zeros))
"""trailing_zeros(word) -> the number of its lowest bits that are 0; 64 of the word 0."""


@inner
def same_bytes(a: int, b: int, length: int) -> bool:
    """Whether words of equal hash and length are equal; up to eight bytes they always are."""
    if length <= 8:
        return True
    for offset in range(0, length - 8, 8):
        if load_word(a + offset) != load_word(b + offset):
            return False
    return bool(load_word(a + length - 8) == load_word(b + length - 8))
