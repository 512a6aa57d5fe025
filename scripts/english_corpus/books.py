"""Running text out of a book in Markdown, cut into records at its headings.

A book opens with its title, author and year as headings and a rule. A record is the text from one
heading to another, 24 thousand characters or more of it; where a chapter alone is longer than 80
thousand, it is cut between two paragraphs.
"""

import re

SHORTEST_RECORD, LONGEST_RECORD = 24_000, 80_000  # characters
FRONT_MATTER = re.compile(r"#+ *(Title|Author|Year): *(.*)")
HEADING = re.compile(r"#{1,6} *(.*?) *#*")
RULE = re.compile(r"[-*_=~\s.]*")
FOOTNOTE_MARK = re.compile(r"\[(?:\d{1,4}|\*+|\^\w+|[Ff]ootnote[^\]]*)\]")
GUTENBERG = re.compile(r"project gutenberg|gutenberg[- ]?tm|gutenberg\.(?:org|net)", re.IGNORECASE)


def documents(raw: str, work: str) -> list[list[str]]:
    """The records of a book, each a list of paragraphs; the first opens with title and author."""
    front: dict[str, str] = {}
    records: list[list[str]] = [[]]
    length = 0
    for block in re.split(r"\n[ \t]*\n", raw.replace("\r\n", "\n").lstrip("\ufeff")):
        for lines in heading_apart(block):
            if entry := FRONT_MATTER.fullmatch(lines.strip()):
                front.setdefault(entry[1], plain(entry[2]))
                continue
            heading = HEADING.fullmatch(lines.strip())
            text = plain(heading[1] if heading else lines)
            if RULE.fullmatch(text) or GUTENBERG.search(text):
                continue
            if (heading and length >= SHORTEST_RECORD) or length + len(text) > LONGEST_RECORD:
                records.append([])
                length = 0
            records[-1].append(text)
            length += len(text) + 2
    records[0].insert(0, f"{front.get('Title', '')}\nby {front.get('Author', '')}")
    if len(records) > 1 and length < SHORTEST_RECORD:
        tail = records.pop()
        records[-1] += tail
    return records


def heading_apart(block: str) -> list[str]:
    """The pieces of a block: every line that is a heading or a rule, and the text between them."""
    pieces = re.split(r"^((?:#{1,6} .*)|-{3,} *)$", block, flags=re.MULTILINE)
    return [piece for piece in pieces if piece.strip()]


def plain(text: str) -> str:
    """A paragraph without Markdown's marks, as one line; forced line ends (verse) stay."""
    text = FOOTNOTE_MARK.sub("", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\*{1,3}(?=\S)|(?<=\S)\*{1,3}|(?<!\w)_+(?=\S)|(?<=\S)_+(?!\w)", "", text)
    text = re.sub(r"</?\w+/?>", "", text)
    text = re.sub(r"\\([\\`*_{}\[\]()#+.!-])", r"\1", text)
    lines = (re.sub(r"\s+", " ", line).strip().lstrip("> ") for line in text.split("\n"))
    return "\n".join(line for line in lines if line)
