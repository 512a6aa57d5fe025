"""Whether a run ended as another did: the same weights, log, summary and samples, to the last bit.

What depends on the clock stands under "timing" and is left out; of all else nothing may differ.
"""

import json
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any


def find_differences(run_dir: Path, reference: Path) -> list[str]:
    """What differs between two finished runs, a sentence each; empty where nothing does."""
    names = ("model.safetensors", "metrics.jsonl", "summary.json", "samples.txt")
    missing = [name for name in names if not (run_dir / name).is_file()]
    if missing:
        return [f"{name} is missing" for name in missing]
    ours, theirs = ({name: (d / name).read_bytes() for name in names} for d in (run_dir, reference))
    found = []
    for name in ("model.safetensors", "samples.txt"):
        if ours[name] != theirs[name]:
            pairs = zip_longest(ours[name], theirs[name])
            at = next(index for index, (one, other) in enumerate(pairs) if one != other)
            found.append(f"{name} differs from byte {at:,} on")
    found += _different_lines(ours["metrics.jsonl"], theirs["metrics.jsonl"])
    fields = _different_fields(ours["summary.json"], theirs["summary.json"])
    return [*found, f"summary.json: {fields}"] if fields else found


def _different_lines(ours: bytes, theirs: bytes) -> list[str]:
    mine, others = ours.splitlines(), theirs.splitlines()
    found = []
    if len(mine) != len(others):
        found.append(f"metrics.jsonl has {len(mine)} lines and should have {len(others)}")
    for number, (line, other) in enumerate(zip(mine, others, strict=False), start=1):
        if fields := _different_fields(line, other):
            found.append(f"metrics.jsonl, line {number}: {fields}")
    return found


def _different_fields(ours: bytes, theirs: bytes) -> str:
    """`loss is 2.5 and should be 2.25, …`, for two objects of JSON."""
    try:
        mine, others = json.loads(ours), json.loads(theirs)
    except ValueError:
        return "cannot be read"
    return ", ".join(
        f"{name} is {_shown(mine, name)} and should be {_shown(others, name)}"
        for name in {**others, **mine}
        if name != "timing" and _shown(mine, name) != _shown(others, name)
    )


def _shown(values: Mapping[str, Any], name: str) -> str:
    # as text, in which every float has its own digits and NaN equals itself
    return json.dumps(values[name]) if name in values else "absent"
