"""`tokenizer.json`, the file of Hugging Face's tokenizers, written and read.

It holds the vocabulary, the merges in order, the pattern as a regular expression, and the special
tokens; and it can hold much that Strata does not do, such as changing the text before it is cut.
What is read is byte-level BPE with one of our three patterns, in any of the spellings that are
known to be one of them; the tests compare each with the library itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from strata.storage import write_whole
from strata.tokenizer.exchange import check_merges, printable, read_merge, unprintable
from strata.tokenizer.formats import field, parse, reading, shown, token_ids

if TYPE_CHECKING:
    from strata.tokenizer.tokenizer import Tokenizer

# The patterns of scanner.py in the dialect of Oniguruma, which `tokenizers` uses. There `{1,3}+`
# would repeat rather than be possessive, and `$` would match before any line end. Nothing depends
# on the possessive quantifiers but speed, so they are plain here.
ONIGURUMA = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s",
    "cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "strata": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}{1,2}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
    ),
}

# The same patterns as others spell them, first as ByteLevel does by itself.
SPELLINGS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    **{regex: name for name, regex in ONIGURUMA.items()},
}
# cl100k as tiktoken spelled it at first. These differ where a text ends in white space with a line
# end in it: they cut after the line end, today's does not. That makes no difference to the ids if
# no token goes on after a line end, and of GPT-4's own none does.
OLDER_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
)

BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}


def write_huggingface(tokenizer: Tokenizer, path: Path) -> None:
    """Writes a `tokenizer.json`, which `tokenizers.Tokenizer.from_file` reads.

    That library always recognises special tokens in text; set its `encode_special_tokens` to have
    them encoded as text, as Strata does.

    Raises ValueError for a pattern of one's own, whose expression is not known, and if a special
    token has the name of a token, which that library does not keep apart.
    """
    if tokenizer.pattern not in ONIGURUMA:
        raise ValueError(
            f"the pattern {tokenizer.pattern!r} has no regular expression for a tokenizer.json: "
            f"expected one of {', '.join(ONIGURUMA)}"
        )
    vocabulary = {printable(token): index for token, index in tokenizer.ranks.items()}
    name_of = {index: name for name, index in vocabulary.items()}
    for name in tokenizer.special_tokens:
        if name in vocabulary:
            raise ValueError(
                f"the special token {name!r} has the name of another token, and a tokenizer.json "
                "cannot hold both"
            )
    n_ranks = len(vocabulary)
    follow_at_once = [*tokenizer.special_tokens.values()] == [
        *range(n_ranks, n_ranks + len(tokenizer.special_tokens))
    ]
    if not follow_at_once:
        # The library gives added tokens the next free ids, unless the vocabulary holds them.
        vocabulary |= tokenizer.special_tokens
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name, index in tokenizer.special_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": ONIGURUMA[tokenizer.pattern]},
                    "behavior": "Isolated",
                    "invert": False,
                },
                BYTE_LEVEL,
            ],
        },
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            # A word that is a token is that token, without merging. Where the vocabulary holds
            # special tokens too, a word could then become one.
            "ignore_merges": follow_at_once,
            "vocab": vocabulary,
            "merges": [f"{name_of[left]} {name_of[right]}" for left, right in tokenizer.merges],
        },
    }
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def read_huggingface(make: type[Tokenizer], path: Path) -> Tokenizer:
    """The tokenizer, made by `make`, of a `tokenizer.json`.

    Raises FileNotFoundError, or ValueError that says what is not supported.
    """
    with reading(path, "tokenizer.json that Strata can read"):
        content = parse(path)
        model = field(content, "model", dict)
        refuse_unsupported(content, model)
        vocabulary = token_ids(field(model, "vocab", dict))
        special_tokens = read_added_tokens(content, vocabulary)
        for name in special_tokens:
            vocabulary.pop(name, None)
        merges = [read_merge(entry) for entry in field(model, "merges", list)]
        pattern, is_older = read_pattern(content)
        ranks = {unprintable(name): index for name, index in vocabulary.items()}
        if is_older and (token := line_end_inside(ranks)):
            raise ValueError(
                "its regular expression is an older form of cl100k, which would not let the token "
                f"{token!r} be at the end of a text, as today's does"
            )
        tokenizer = make.from_ranks(ranks, pattern, special_tokens)
        check_merges(tokenizer, vocabulary, merges)
        return tokenizer


# What a tokenizer.json may say that changes the ids, and what it has to be: nothing.
UNSUPPORTED = ("normalizer", "truncation", "padding")
UNSUPPORTED_IN_MODEL = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "byte_fallback",
)
NO_NORMALIZER = {"type": "Sequence", "normalizers": []}


def refuse_unsupported(content: dict[str, object], model: dict[str, object]) -> None:
    """Raises ValueError if the file says anything that Strata does not do."""
    kind = model.get("type", "BPE")  # files of GPT-2's time do not say
    if kind != "BPE":
        raise ValueError(f"its model is {shown(kind)}, and only BPE is supported")
    for holder, names in ((content, UNSUPPORTED), (model, UNSUPPORTED_IN_MODEL)):
        for name in names:
            if holder.get(name) and holder[name] != NO_NORMALIZER:
                raise ValueError(
                    f"its {name} is {shown(holder[name])}, and none is supported: byte-level BPE "
                    "takes text as it is"
                )


def read_pattern(content: dict[str, object]) -> tuple[str, bool]:
    """The pattern of a `tokenizer.json`, and whether it is one of OLDER_CL100K.

    Raises ValueError unless `pre_tokenizer` is a known regular expression and ByteLevel, or
    ByteLevel alone, which then brings GPT-2's.
    """
    given = field(content, "pre_tokenizer", dict)
    steps = field(given, "pretokenizers", list) if given.get("type") == "Sequence" else [given]
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False} as step]:
            if step.get("use_regex", True) is True:
                return "gpt2", False
        case [
            {"type": "Split", "pattern": {"Regex": str(regex)}} as split,
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            # Both say that what the expression matches is a word.
            how = (split.get("behavior"), split.get("invert"))
            if how in (("Isolated", False), ("Removed", True)):
                if regex in OLDER_CL100K:
                    return "cl100k", True
                if regex in SPELLINGS:
                    return SPELLINGS[regex], False
                raise ValueError(
                    f"its regular expression {regex!r} is none of the known spellings of "
                    f"{', '.join(ONIGURUMA)}"
                )
    raise ValueError(
        f"its pre_tokenizer is {json.dumps(given):.400}: expected a Split by a regular expression "
        "and ByteLevel without one, or ByteLevel alone, and add_prefix_space false"
    )


def read_added_tokens(content: dict[str, object], vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The special tokens of a `tokenizer.json`.

    Raises ValueError for unsupported ones, and for those whose ids are not what the library makes
    of them: that of the vocabulary, or else the next free one, whatever the file says.
    """
    special_tokens: dict[str, int] = {}
    free = len(vocabulary)
    for entry in field(content, "added_tokens", list) if content.get("added_tokens") else []:
        name, index = field(entry, "content", str), field(entry, "id", int)
        for option in ("single_word", "lstrip", "rstrip"):
            if entry.get(option):
                raise ValueError(f"the added token {name!r} has {option}, which is not supported")
        if name in special_tokens:
            raise ValueError(f"it holds the added token {name!r} twice")
        if index != (expected := vocabulary.get(name, free)):
            raise ValueError(
                f"the added token {name!r} has the id {index}, where `tokenizers` takes {expected}"
            )
        special_tokens[name] = index
        free = max(free, index + 1)
    return special_tokens


def line_end_inside(ranks: Mapping[bytes, int]) -> bytes | None:
    """A token that goes on after a line end, without ending in one, if there is any."""
    for token in ranks:
        if (b"\n" in token or b"\r" in token) and token[-1:] not in (b"\n", b"\r"):
            return token
    return None
