"""Prose out of a Python Enhancement Proposal, in reStructuredText.

A paragraph is kept as one line; literal blocks, directives, tables and what stands under
`References` or `Copyright` go; inline mark-up leaves its words.
"""

import re

DROPPED_SECTIONS = {
    "references",
    "copyright",
    "footnotes",
    "references and footnotes",
    "references/footnotes",
}
SHORTEST_PARAGRAPH = 60  # characters: shorter ones introduce code that is gone, or are lists'
UNDERLINE = re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}")
# Indented (code, quotations, what belongs to a directive), a directive, a table, a field, a prompt.
NO_PROSE = re.compile(r"\s|\.\.(?: |$)|[+|]|=+ +=|:|>>>|$")


def documents(raw: str, work: str) -> list[list[str]]:
    """The one document of a proposal: its title, then headings and paragraphs in their order."""
    header, _, body = raw.replace("\r\n", "\n").expandtabs(8).partition("\n\n")
    title = re.search(r"^Title: *(.+(?:\n +.+)*)", header, re.MULTILINE)
    kept = [" ".join(title[1].split())] if title else []
    skipping = False
    for block in re.split(r"\n(?:[ \t]*\n)+", body.strip("\n")):
        lines = block.rstrip().split("\n")
        while heading := heading_of(lines):
            text, used = heading
            skipping = text.casefold() in DROPPED_SECTIONS
            if not skipping:
                kept.append(text)
            lines = lines[used:]
        if skipping or not lines or NO_PROSE.match(lines[0]):
            continue
        text = inline(" ".join(line.strip() for line in lines))
        if len(text) >= SHORTEST_PARAGRAPH:
            kept.append(text)
    return [kept]


def heading_of(lines: list[str]) -> tuple[str, int] | None:
    """A section's title at the head of a block, and how many lines it takes; None without one."""
    if len(lines) >= 3 and UNDERLINE.fullmatch(lines[0].rstrip()) and lines[0] == lines[2]:
        return lines[1].strip(), 3
    if len(lines) >= 2 and lines[0].strip() and lines[0][0] != " ":
        underline = UNDERLINE.fullmatch(lines[1].rstrip())
        if underline and not UNDERLINE.fullmatch(lines[0].rstrip()):
            return lines[0].strip(), 2
    return None


def inline(text: str) -> str:
    """Literals, roles, links and emphasis as the words they show."""
    text = re.sub(r"::$", ":", text)
    text = re.sub(r"`([^`<]+?)\s*<[^`>]+>`__?", r"\1", text)
    text = re.sub(r":[\w:-]+:`([^`<]+?)\s*<[^`>]+>`", r"\1", text)
    text = re.sub(r":pep:`(\d+)`", r"PEP \1", text)
    text = re.sub(r":[\w:-]+:`[!~]?([^`]+)`", r"\1", text)
    text = re.sub(r"``(.+?)``", r"\1", text)
    text = re.sub(r"`([^`]+)`(?:__?)?", r"\1", text)
    text = re.sub(r"(?<![\w*])(\*\*?)([^\s*](?:[^*]*[^\s*])?)\1(?![\w*])", r"\2", text)
    text = re.sub(r" ?\[[#*\w-]{1,30}\]_", "", text)
    return re.sub(r"\s+", " ", text).strip()
