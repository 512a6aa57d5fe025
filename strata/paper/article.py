r"""The article's source, read as text: what it asks for, where, and which numbers are typed in it.

`read_article` gives `strata.tex`, and what it takes in by `\input`, as one text without comments
that still knows its files and lines. Nothing here runs LaTeX: a name can be looked up and a typed
number found in milliseconds, and where no LaTeX is installed.

**What counts as a typed number** (`typed_numbers`). A results section is one that opens with
`\resultssection` in place of `\section`; it ends where the next section begins. The abstract is
one too. In it no digit may stand in running text, captions or hand-made tables. Allowed are digits
that do not state a result:

- in the names of things: a word that begins with a letter (GPT-3, SHA-256, float32), `\code{...}`,
  labels, citations, files, lengths, and the columns of a table;
- in displayed equations, which define what is computed;
- in formulas between dollars, where they belong to an expression with variables: exponents and
  indices, and whole numbers in the sense of `1 - \beta` or `d/2`. A decimal, a number beside a
  relation, a `\times`, a `\pm` or words (`\text{...}`), and a formula of digits alone are results,
  and not allowed;
- in `\fixed{13}{where it is from}`, for a number that no run computes: a definition, or what
  others published. Its source is obligatory and is printed in the appendix on provenance.

Numbers in words ("four rates") are not found.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What `\input` of these takes in is generated, and is no part of the text.
GENERATED = ("numbers", "provenance", "tables/")
RECORD = "provenance.json"  # what they are generated from


@dataclass(frozen=True, order=True)
class Place:
    """A line of a file; the path counts from the article's folder, line 0 is the whole file."""

    file: str
    line: int


@dataclass(frozen=True)
class Found:
    """Something that the text asks for, and where."""

    name: str
    place: Place


@dataclass(frozen=True)
class Article:
    """The article as one text, comments taken out, and the place of each of its lines."""

    text: str
    starts: tuple[int, ...]  # offset in `text` at which each line begins
    places: tuple[Place, ...]  # of each line
    files: tuple[str, ...]  # those of the text and of its local style, from the article's folder

    def place(self, offset: int) -> Place:
        return self.places[bisect_right(self.starts, offset) - 1]

    def find(self, pattern: str) -> list[Found]:
        """All matches of a pattern's first group, in order."""
        matches = re.finditer(pattern, self.text)
        return [Found(match[1], self.place(match.start(1))) for match in matches]

    def keys(self, pattern: str) -> list[Found]:
        """As `find`, for groups that hold several names with commas between them."""
        return [
            Found(key.strip(), found.place)
            for found in self.find(pattern)
            for key in found.name.split(",")
            if key.strip()
        ]

    def macros(self) -> list[Found]:
        r"""The results that the text uses: `\runLoss` is found as `runLoss`."""
        return self.find(r"\\(run[A-Z][A-Za-z]*)")

    def tables(self) -> list[Found]:
        return self.find(r"\\input\{tables/(\w+)(?:\.tex)?\}")

    def figures(self) -> list[Found]:
        return self.find(r"\\includegraphics(?:\[[^]]*\])?\{(\w+)(?:\.pdf)?\}")

    def citations(self) -> list[Found]:
        return self.keys(r"\\cite\w*\*?(?:\[[^]]*\])*\{([^}]*)\}")

    def references(self) -> list[Found]:
        return self.keys(r"\\(?:[cC]|page|eq|auto|name)?ref\*?\{([^}]*)\}")

    def labels(self) -> list[Found]:
        return self.find(LABEL)

    def fixed(self) -> list[tuple[str, str]]:
        r"""Each number typed as `\fixed{number}{source}`, and its source; each pair once."""
        pairs = []
        for match in re.finditer(r"\\fixed\s*(?=\{)", self.text):
            number_end = _closing(self.text, match.end())
            if self.text[number_end : number_end + 1] != "{":
                continue  # an argument is missing, which LaTeX will say
            source_end = _closing(self.text, number_end)
            pairs.append(
                (self.text[match.end() + 1 : number_end - 1],
                 self.text[number_end + 1 : source_end - 1])
            )  # fmt: skip
        return list(dict.fromkeys(pairs))


LABEL = r"\\label\{([^}]*)\}"


def read_article(folder: Path) -> Article:
    """The text of `folder/strata.tex` with everything it takes in that people have written.

    Raises FileNotFoundError without `strata.tex`. Other files that are missing are left to LaTeX.
    """
    if not (folder / "strata.tex").is_file():
        raise FileNotFoundError(f"the article's source {folder / 'strata.tex'} does not exist")
    files: list[str] = []
    lines = list(_lines(folder, "strata.tex", files))
    starts, offset = [], 0
    for _, line in lines:
        starts.append(offset)
        offset += len(line) + 1
    text = "\n".join(line for _, line in lines)
    styles = re.findall(r"\\usepackage(?:\[[^]]*\])?\{(\w+)\}", text)
    files += [f"{name}.sty" for name in styles if (folder / f"{name}.sty").is_file()]
    return Article(text, tuple(starts), tuple(place for place, _ in lines), tuple(files))


def sources(folder: Path) -> list[str]:
    """All that the PDF is made from, as paths from the article's folder; some may not exist."""
    article = read_article(folder)
    generated = ["numbers.tex", "provenance.tex", RECORD]
    generated += [f"tables/{found.name}.tex" for found in article.tables()]
    figures = [f"../figures/{found.name}.pdf" for found in article.figures()]
    references = sorted(path.name for path in folder.glob("*.bib"))
    return list(dict.fromkeys([*article.files, *references, *generated, *figures]))


def _lines(folder: Path, file: str, files: list[str]) -> Iterator[tuple[Place, str]]:
    """The lines of a file and, after the line that takes it in, those of another."""
    files.append(file)
    for number, line in enumerate((folder / file).read_text(encoding="utf-8").splitlines(), 1):
        line = re.sub(r"(?<!\\)((?:\\\\)*)%.*", r"\1", line)
        yield Place(file, number), line
        for name in re.findall(r"\\(?:input|include)\{([^}]+)\}", line):
            other = name if name.endswith(".tex") else f"{name}.tex"
            generated = name.removesuffix(".tex") in GENERATED or name.startswith(GENERATED[-1])
            if not generated and other not in files and (folder / other).is_file():
                yield from _lines(folder, other, files)


# --- Typed numbers -------------------------------------------------------------------------------


_NUMBER = r"\d(?:(?:[\d.,]|\{[.,]\})*\d)?"  # `1{.}7` prints as 1.7 does


def typed_numbers(article: Article) -> list[Found]:
    """The numbers typed in results sections that are none of what the module's opening allows."""
    masked = _mask(article.text)
    return [
        Found(number[0], article.place(start + number.start()))
        for start, end in _results_sections(article.text)
        for number in re.finditer(_NUMBER, masked[start:end])
    ]


def hand_made_numbers(article: Article) -> list[Found]:
    r"""Macros that the source defines to a number: the ways around `\run...` and `\fixed`."""
    defined = (
        r"\\(?:(?:re|provide)?newcommand\*?|Declare(?:RobustCommand|MathOperator\*?)|[gex]?def|let)"
        r"\s*\{?\\([A-Za-z]+)\}?"
    )
    found = []
    for match in re.finditer(defined, article.text):
        rest = article.text[match.end() :].lstrip()
        body = re.match(r"(?:\[[^]]*\]|#\d)*", rest)
        brace = body.end() if body else 0
        inner = rest[brace : _closing(rest, brace)] if rest[brace : brace + 1] == "{" else ""
        is_number = bool(re.search(r"\d", re.sub(r"#\d", "", _mask(inner))))
        if is_number or re.match("run[A-Z]", match[1]):
            found.append(Found(match[1], article.place(match.start())))
    return found


def _results_sections(text: str) -> Iterator[tuple[int, int]]:
    abstract = r"\\begin\{abstract\}(.*?)\\end\{abstract\}"
    section = (
        r"\\resultssection\*?(?=\{)(.*?)"
        r"(?=\\section\b|\\resultssection\b|\\appendix\b|\\bibliography\{|\\end\{document\}|\Z)"
    )
    for pattern in (abstract, section):
        for match in re.finditer(pattern, text, re.DOTALL):
            yield match.span(1)


_DISPLAYED = r"\\begin\{(equation|align|gather|multline)(\*?)\}.*?\\end\{\1\2\}|\\\[.*?\\\]"
_NAMING = (  # commands whose arguments are names or lengths, and are not printed as they stand
    r"\\(?:label|[cC]?ref|(?:page|eq|auto|name)ref|cite\w*|input|include|includegraphics|url|code"
    r"|[vh]space|setlength|addtolength|bibliography(?:style)?)\*?(?:\[[^]]*\])*(?:\{[^{}]*\})+"
    r"|\\href\s*\{[^{}]*\}"
    r"|\\begin\{(?:tabular|tabularx|longtable|minipage|multicols)\*?\}"
    r"(?:\[[^]]*\]|\{(?:[^{}]|\{[^{}]*\})*\})*"
    r"|\\\\\[[^]]*\]"
    r"|[\[{=]-?[\d.]+\s*(?:\\(?:line|text|column|half)width|pt|em|ex|in|cm|mm)(?=[\]},])"
)
_NAME = r"(?<![\\\w])[A-Za-z]+-?\d[\w.]*"


def _mask(text: str) -> str:
    """The text with everything blanked, in place, in which a digit states no result."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"\S", " ", match[0])

    for match in reversed(list(re.finditer(r"\\fixed\s*(?=\{)", text))):
        end = _closing(text, match.end())
        source, end = end, _closing(text, end) if text[end : end + 1] == "{" else end
        if not text[source + 1 : end - 1].strip():
            continue  # a number without a source
        text = text[: match.start()] + re.sub(r"\S", " ", text[match.start() : end]) + text[end:]
    text = re.sub(_DISPLAYED, blank, text, flags=re.DOTALL)
    text = re.sub(_NAMING, blank, text)
    text = re.sub(r"(?<!\\)\$([^$]*)(?<!\\)\$|\\\((.*?)\\\)", _mask_formula, text, flags=re.DOTALL)
    return re.sub(_NAME, blank, text)


_LAYOUT = r"\\(?:left|right|[dt]?frac|sqrt|q?quad)"  # no symbols, though words like them


def _mask_formula(match: re.Match[str]) -> str:
    """A formula in the text, with the numbers blanked that are part of an expression."""
    formula = match[0]
    formula = re.sub(
        r"[_^]\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\?\w)",
        lambda script: re.sub(r"\S", " ", script[0]),
        formula,
    )
    # what a number is said to be: nothing of this kind is part of an expression
    relation = r"\\(?:times|cdot|pm|approx|sim|simeq|le|ge|leq|geq|ll|gg|equiv|in|to)\b"
    relation += r"|\\[,;:! ]|[=<>,;~]"
    relation += r"|\\(?:text\w*|mbox|hbox|math(?:rm|bf|it|sf|tt))\s*\{[^{}]*\}"  # words and units
    inner = formula.strip("$").removeprefix(r"\(").removesuffix(r"\)")
    tokens = list(re.finditer(rf"{relation}|\\[A-Za-z]+|{_NUMBER}|\S", inner))
    kinds = ["relation" if re.fullmatch(relation, token[0])
             else "number" if token[0][0].isdigit()
             else "sign" if token[0] in "+-"
             else "symbol" if token[0][-1].isalpha() and not re.fullmatch(_LAYOUT, token[0])
             else "other" for token in tokens]  # fmt: skip
    shift = formula.index(inner)
    for i, token in enumerate(tokens):
        if kinds[i] != "number" or not token[0].isdigit() or "symbol" not in kinds:
            continue
        before = kinds[:i]
        if before and before[-1] == "sign" and (len(before) == 1 or before[-2] == "relation"):
            before = before[:-1]  # the sign of this number, not the one between two terms
        after = kinds[i + 1 : i + 2]
        beside = before[-1:] + after
        if "relation" not in beside and not (not before and not after):
            start, end = token.start() + shift, token.end() + shift
            formula = formula[:start] + " " * (end - start) + formula[end:]
    return formula


def _closing(text: str, opening: int) -> int:
    """The offset after the brace that closes the one at `opening`, or the end of the text."""
    depth = 0
    for i in range(opening, len(text)):
        if text[i] in "{}" and (i == 0 or text[i - 1] != "\\"):
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return i + 1
    return len(text)
