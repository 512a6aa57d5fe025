"""Files: written whole or not at all, and where prepared data rests between runs.

    cache_dir()/corpora/<fingerprint>.json                    what a corpus was found to hold
    cache_dir()/tokenizers/<corpus>-<pattern>-<size>.json     trained tokenizers, and truncations
                                                              of them, with their size after it
    cache_dir()/vocabularies/                                 vocabularies as others published them
    cache_dir()/shards/<corpus>-<tokenizer>-<split>/          token shards and their manifest, and
                                                              plans of packed rows (best-fit-…)
    cache_dir()/evaluation/<task's file>.jsonl                the data of evaluation tasks
    cache_dir()/kernels/<hash>/                               the tokenizer's machine code, where
                                                              it cannot lie beside its source
    cache_dir()/transfer-id                                   by which far machines know this one
    cache_dir()/code/<hash of sources>                        the hash of what they mean

Everything in the cache can be made or fetched again; deleting the folder costs time and nothing
else. Names hold the hashes of what the content depends on, so an entry never goes stale: it is just
no longer asked for.
"""

import hashlib
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path


def cache_dir() -> Path:
    """The folder of prepared data: `STRATA_CACHE` if set, else `strata` in the user's cache folder.

    The user's cache folder is what the platform says: `$XDG_CACHE_HOME` or `~/.cache` on Linux,
    `~/Library/Caches` on macOS, `%LOCALAPPDATA%` on Windows. The folder need not exist yet.
    """
    if chosen := os.environ.get("STRATA_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        platform_folder = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        platform_folder = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        platform_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return platform_folder / "strata"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; read in pieces, however large it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a loss of power (nothing to do on Windows)."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_beside(path: Path) -> Path:
    """A hidden name in the same folder that no other process uses, to be renamed to `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file so that any reader, at any instant, sees all of it or what was there before.

    It is written under a temporary name in the same folder, which is made if need be, reaches the
    disk, and is renamed. Of several that write the same path at once the last wins; none sees
    another's half. Text is written as UTF-8, its line ends as they are. Returns `path`.

    Raises:
        OSError: naming `path`. What was there before stays, and nothing else.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # on a read-only file system not even what is not there
            temporary.unlink(missing_ok=True)
    return path
