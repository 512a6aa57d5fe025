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


def gather(folder: Path, *, for_rsync: bool) -> dict[str, int]:
    """Make what earlier attempts left in `folder` of use to the next one; the bytes of each sum.

    An rsync that ends in good order leaves a half file in its partial folder, one that is killed
    leaves .SUM.XXXXXX, and sftp a SUM that is short. Of each sum the longest is kept, where rsync
    looks for half files, or under its sum for sftp to append to; so nothing piles up either.
    """
    arrived = {path.name: _size(path) for path in folder.iterdir() if _sum_in(path.name)}
    for path in [*folder.glob(".*"), *(folder / PARTIAL).glob("*")]:
        name = _sum_in(path.name)
        if not name or path.is_symlink() or not path.is_file():
            continue
        place = folder / PARTIAL / name if for_rsync else folder / name
        place.parent.mkdir(exist_ok=True)
        if path == place or _size(path) > max(_size(folder / name), _size(place)):
            path.replace(place)
        else:
            path.unlink()
        arrived[name] = max(_size(folder / name), _size(place))
    return arrived


def _sum_in(name: str) -> str:
    """The sum that a file's name holds, also where rsync made a temporary name of it."""
    found = re.fullmatch(r"([0-9a-f]{64})|\.([0-9a-f]{64})\.\w{6}", name)
    return found[1] or found[2] if found else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
