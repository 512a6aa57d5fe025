"""LaTeX for the paper: recorded results as text that people and TeX read alike.

A result has one text, plain Unicode with its digits and unit (`number_text`, `value_text`,
`table_texts`): notebooks show it as it is, and `escape` turns it into LaTeX that prints the same,
so that no number is rounded in two places. `block` and `table` do this for samples of several
lines and for tables. A notebook has no need of this module.
"""

import math
from collections.abc import Sequence

# What a result or a table's cell may be: text, a number, (value, low, high), or nothing.
Plain = str | int | float | tuple[float, float, float] | None

# --- Numbers as people read them -----------------------------------------------------------------


def _exponent(value: float, digits: int) -> int:
    """Power of ten of a number rounded to `digits` digits: 9.996 at three digits is 10.0, so 1."""
    return int(f"{value:.{digits - 1}e}".split("e")[1])


def _plainly_written(value: float) -> bool:
    return value == 0 or 1e-4 <= abs(value) < 1e6


def _decimals(value: float, digits: int) -> int:
    """Decimals that show `digits` significant digits of a number; 0 for large numbers."""
    return max(0, digits - 1 - _exponent(value, digits)) if math.isfinite(value) else 0


def number_text(value: float, digits: int = 3, decimals: int | None = None) -> str:
    """A number as text: `86,400`, `0.0312`, `−1.50`, `1.23 × 10⁹`.

    Integers are written whole, floats to `digits` significant digits, or to `decimals` decimals
    where that is given (to line numbers up).
    """
    if isinstance(value, int):
        text = f"{value:,}"
    elif math.isinf(value):
        text = "∞" if value > 0 else "-∞"
    elif decimals is not None:
        text = f"{value:,.{decimals}f}"
    elif _plainly_written(value):
        rounded = float(f"{value:.{digits - 1}e}")
        text = f"{rounded:,.{_decimals(value, digits)}f}"
    else:
        mantissa = f"{value:.{digits - 1}e}".split("e")[0]
        power = str(_exponent(value, digits)).translate(str.maketrans("-0123456789", _POWERS))
        text = f"{mantissa}\u202f×\u202f10{power}"
    return text.replace("-", "−")


_POWERS = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"


def _with_unit(text: str, unit: str) -> str:
    """A unit after its number: closed up for `%` and `×`, after a thin space for all others."""
    return text + ("" if unit in ("", "%", "×") else "\u202f") + unit


def value_text(value: float | str, unit: str, digits: int) -> str:
    """One value with its unit: `8.42 s`, `31.2%`, `2.31×`."""
    return _with_unit(value if isinstance(value, str) else number_text(value, digits), unit)


def interval_text(value: float, low: float, high: float, unit: str, digits: int) -> str:
    """The ends of a value's interval, with as many decimals as the value: `1.90 to 2.75×`."""
    finite = isinstance(value, float) and _plainly_written(value)
    decimals = _decimals(value, digits) if finite else None
    ends = [number_text(float(end), digits, decimals) for end in (low, high)]
    return _with_unit(" to ".join(ends), unit)


def table_texts(rows: Sequence[Sequence[Plain]], digits: int) -> tuple[list[list[str]], list[bool]]:
    """The cells of a table as text, and for each column whether it holds nothing but numbers.

    Floats of a column get the same number of decimals, unless they span more than three powers of
    ten: then each is written for itself.
    """
    columns, numeric = [], []
    for cells in zip(*rows, strict=True):
        middles = [cell[0] if isinstance(cell, tuple) else cell for cell in cells]
        sizes = [abs(m) for m in middles if isinstance(m, float) and m != 0 and math.isfinite(m)]
        aligned = bool(sizes) and all(map(_plainly_written, sizes))
        aligned = aligned and max(sizes) < 1e3 * min(sizes)
        decimals = _decimals(min(sizes), digits) if aligned else None
        columns.append([_cell_text(cell, digits, decimals) for cell in cells])
        numeric.append(not any(isinstance(cell, str) for cell in cells))
    return [list(row) for row in zip(*columns, strict=True)], numeric


def _cell_text(cell: Plain, digits: int, decimals: int | None) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, tuple):
        value, low, high = (number_text(part, digits, decimals) for part in cell)
        return f"{value} [{low}, {high}]"
    return number_text(cell, digits, decimals)


# --- Text as LaTeX -------------------------------------------------------------------------------

_CHARACTERS = {
    **{character: f"\\{character}" for character in "%&$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "‘": r"\textquoteleft{}",
    "’": r"\textquoteright{}",
    "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}",
    "…": r"\dots{}",
    "\u202f": r"\,",
    "\u00a0": "~",
    "×": r"\(\times\)",
    "−": r"\(-\)",
    "±": r"\(\pm\)",
    "∞": r"\(\infty\)",
    "≤": r"\(\le\)",
    "≥": r"\(\ge\)",
    "≈": r"\(\approx\)",
    "→": r"\(\to\)",
    "·": r"\(\cdot\)",
    "µ": r"\(\mu\)",
    "α": r"\(\alpha\)",
    "β": r"\(\beta\)",
    "²": r"\textsuperscript{2}",
    "³": r"\textsuperscript{3}",
}
for _mark, _power in zip("-0123456789", _POWERS, strict=True):
    _CHARACTERS[_power] = rf"\textsuperscript{{\({_mark}\)}}"


def escape(text: str) -> str:
    """Text as LaTeX that prints the same; what the fonts lack is printed as its code point."""
    parts = []
    for character in text:
        if character in _CHARACTERS:
            parts.append(_CHARACTERS[character])
        elif " " <= character <= "~" or "À" <= character <= "ÿ":
            parts.append(character)
        else:
            parts.append(rf"\texttt{{[U+{ord(character):04X}]}}")
    # two in a row must not become a dash, or a closing quotation mark
    return "".join(parts).replace("--", "-{}-{}").replace("''", "'{}'{}")


def block(text: str, width: int = 92) -> str:
    """Text of several lines as typewriter lines that keep their spaces and break at `width`."""
    lines = []
    for line in text.expandtabs(4).splitlines():
        for start in range(0, max(len(line), 1), width):
            # the empty box keeps leading spaces, and keeps \\ from reading "[" or "*" as its own
            piece = escape(line[start : start + width]).replace("'", r"\textquotesingle{}")
            lines.append(r"\mbox{}" + piece.replace(" ", r"\ "))
    return r"{\ttfamily\raggedright " + "\\\\\n".join(lines) + r"\par}"


def table(header: Sequence[str], rows: Sequence[Sequence[Plain]], caption: str, digits: int) -> str:
    """A booktabs tabular, numbers to the right; text columns too long for a line are wrapped.

    `caption` is set under the table as a note: the article has its own captions.
    """
    texts, numeric = table_texts(rows, digits)
    columns = [
        "r" if right else "X" if max(len(row[i]) for row in texts) > 36 else "l"
        for i, right in enumerate(numeric)
    ]
    environment, width = ("tabularx", r"{\linewidth}") if "X" in columns else ("tabular", "")
    lines = [rf"\begin{{{environment}}}{width}{{@{{}}{''.join(columns)}@{{}}}}", r"\toprule"]
    lines.append(" & ".join(map(escape, header)) + r" \\")
    lines.append(r"\midrule")
    lines += [" & ".join(map(escape, row)) + r" \\" for row in texts]
    lines += [r"\bottomrule", rf"\end{{{environment}}}"]
    if caption:
        note = r"\begin{minipage}{0.94\linewidth}\footnotesize "
        lines += ["", r"\medskip", note + escape(caption) + r"\end{minipage}"]
    return "\n".join(lines) + "\n"
