"""Running text out of an encyclopaedia's page as its letters were scraped from the screen.

Such a file holds everything a browser shows, a line a block: a notice, the infobox, the lead, the
table of contents, sections with `[edit]` after their headings, captions, tables, lists, notes,
navigation boxes. What is wanted is told from the rest by its form: a paragraph is long and ends
as a sentence does; a heading stands in the table of contents; nothing after the last section of
prose matters.
"""

import re

SHORTEST_PARAGRAPH = 100  # characters; list items, captions and cells are mostly shorter

# Lines that end an article's prose: what follows is apparatus. The corpus that this one follows
# took them wherever they stood, as a section's heading or a column's, and "Literature" for a
# reading list, which it seldom is; so some articles end early, here as there.
APPARATUS = {
    "see also",
    "references",
    "notes",
    "footnotes",
    "further reading",
    "external links",
    "bibliography",
    "sources",
    "notes and references",
    "references and notes",
    "works cited",
    "literature",
    "filmography",
    "discography",
}
# Citation marks and editors' notes: [1], [a], [nb 3], [note 2], [citation needed], [1]:23.
MARK = re.compile(
    r"\[(?:\d{1,4}|[a-z]{1,2}|[ivx]+|(?:nb|note|n|fn|[A-G])\.? ?\d*|edit|update|verify|sic|vague"
    r"|[^\[\]]{0,40}(?:needed|source\??|sources|definition|verification|\?)|weasel words|dead link"
    r"|(?:dubious|disputed)(?: – discuss)?|not in citation given|lacks stress)\](?:,? ?:\s?\d+)?",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"[.?!][\"”’')]*$|[\"”)']$")
CONTENTS_ENTRY = re.compile(r"\d+(?:\.\d+)* (.+)")
# A number's key for sorting in a table, which no browser shows: 7008299792458000000♠299792458.
SORT_KEY = re.compile(r"\d+♠")
# Lines of prose's form that are none: hatnotes, maintenance notices, formulas, broken mark-up.
NOISE = re.compile(
    r"^(?:\^|For (?:other|the|more|a|an)\b.*(?:see|\(disambiguation\))|Main articles?:|See also:"
    r"|Further information:|Not to be confused|Coordinates:|Play media|This article is about"
    r"|This (?:article|section)\b.*"
    r"\b(?:needs?|does not cite|may|is written|contains?|relies|has multiple|possibly)\b)"
    r"|\(Learn how and when to remove|\{\\displaystyle|\\(?:frac|displaystyle|mathrm)\b"
)


def documents(raw: str, work: str) -> list[list[str]]:
    """The one document of a page: its title, then headings and paragraphs in their order."""
    lines = [line.strip() for line in raw.replace("\xa0", " ").split("\n")]
    titles, body = table_of_contents(lines)
    kept = [work.removeprefix("wiki/")]
    heading = ""  # the last one seen, until there is a paragraph under it
    for number, line in enumerate(lines):
        title = line.removesuffix("[edit]").strip()
        if number >= body and len(kept) > 1 and title.casefold() in APPARATUS:
            break
        if number >= body and (line.endswith("[edit]") or title in titles):
            heading = title
            continue
        text = SORT_KEY.sub("", MARK.sub("", line)).replace("( listen)", "").strip()
        if len(text) >= SHORTEST_PARAGRAPH and SENTENCE_END.search(text) and not NOISE.search(line):
            kept += [heading] if heading else []
            kept.append(re.sub(r" {2,}", " ", text))
            heading = ""
    return [kept]


def table_of_contents(lines: list[str]) -> tuple[set[str], int]:
    """The titles listed under `Contents`, and the number of the line where the body begins."""
    titles: set[str] = set()
    if "Contents" not in lines:
        return titles, 0
    end = start = lines.index("Contents") + 1
    for number in range(start, len(lines)):
        if entry := CONTENTS_ENTRY.fullmatch(lines[number]):
            titles.add(entry[1].strip())
            end = number + 1
        elif lines[number]:
            break
    return titles, end
