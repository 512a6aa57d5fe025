"""The folder into which rsync or sftp puts files named by their sums, at whichever end receives."""

import re
import subprocess
from pathlib import Path

# Where rsync puts a half file when it ends in good order, inside the folder that receives.
PARTIAL = ".rsync-partial"


def rsync_works() -> bool:
    """Whether there is an rsync on this machine that knows what is asked of it: 3.1 or later.

    What macOS calls rsync since its version 15 is another program, which does not.
    """
    try:
        said = subprocess.run(["rsync", "--version"], capture_output=True, check=False).stdout
    except OSError:
        return False
    return re.match(rb"rsync +version v?(3\.[1-9]|[4-9]|\d\d)", said) is not None


def gather(folder: Path) -> dict[str, int]:
    """Make what earlier attempts left in `folder` of use to the next one; the bytes of each sum.

    sftp leaves a SUM that is short; rsync a half file in its partial folder, or .SUM.XXXXXX if it
    was killed, which it would not look at again. Of each sum the longest stays: one that rsync left
    in its partial folder, where rsync writes on without a second copy, any other as SUM.
    """
    places = [place for place in (folder, folder / PARTIAL) if place.is_dir()]
    longest: dict[str, Path] = {}
    for path in sorted((path for place in places for path in place.iterdir()), key=_size):
        name = _sum_in(path.name)
        if name and path.is_file() and not path.is_symlink():
            if name in longest:
                longest[name].unlink()
            longest[name] = path
    arrived = {name: _size(path) for name, path in longest.items()}
    for name, path in longest.items():
        if path.name != name:
            (folder / PARTIAL).mkdir(exist_ok=True)
            path.replace(folder / PARTIAL / name)
    return arrived


def _sum_in(name: str) -> str:
    """The sum that a file's name holds, also where rsync made a temporary name of it."""
    found = re.fullmatch(r"([0-9a-f]{64})|\.([0-9a-f]{64})\.\w{6}", name)
    return found[1] or found[2] if found else ""


def _size(path: Path) -> int:
    return path.lstat().st_size
