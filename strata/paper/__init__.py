"""How results reach the paper: a notebook records, the run keeps, the paper is made from the run.

One way, in three steps. **In a notebook** `use_run` names the run, `apply_style` sets the one
figure style, and `save_figure`, `record` and `record_table` leave their results in the run folder:
figures as vector PDF (for the paper) and PNG (for people) in `figures/`, everything else in
`values.json`. **`publish`** copies the run's figures into the repository's `figures/` and writes
into `paper/` what the article takes in: `numbers.tex`, one LaTeX macro a value, `tables/`, one file
a table, and the appendix `provenance.tex`, which says of each of them where it comes from; `draft`
does the same inside the run folder and touches no tracked file. **`build_article`** turns the
result into a PDF, or stops and says why. `check` says what is wrong with what is committed, and
`bundle` packs it for arXiv.

A value named `gpt3_validation_bits_per_byte` becomes the macro `\\runGptThreeValidationBitsPerByte`
with its digits and unit; if it was recorded with an interval, `\\run…Interval` holds that. Every
generated macro starts with `\\run`, so that what the text asks for and what the run recorded can be
compared before LaTeX starts.

    results     what a notebook calls                  style      its colours and sizes
    article     the source as text: what it asks for   latex      results as LaTeX
    generated   all that follows from a run's record   publishing where it is written
    building    LaTeX and its log                      checking   arxiv

`values.json`::

    {"values":  {name: {"value", "low", "high", "unit", "digits", "text", "chapter"}},
     "tables":  {name: {"header", "rows", "caption", "digits", "chapter"}},
     "figures": {name: {"claim", "chapter"}}}

`low` and `high` are null where there is no interval; infinite numbers are the strings "inf" and
"-inf", as JSON has none; a table's cell is a string, a number, null or [value, low, high]. A result
that was computed from something else than the run (a stored suite of runs) has a `"source"` beside
these: {"name", "commits", "configuration", "date", "dirty", "file", "sha256"}, a `Source`.
"""

from strata.paper.arxiv import bundle
from strata.paper.building import build_pdf
from strata.paper.checking import Finding, check
from strata.paper.publishing import build_article, draft, publish, republish
from strata.paper.results import (
    Source,
    Value,
    read_values,
    record,
    record_table,
    save_figure,
    show_table,
    stored_source,
    use_run,
)
from strata.paper.style import (
    COLOURS,
    FULL,
    GPT3_COLOUR,
    HALF,
    REFERENCE_COLOUR,
    STRATA_COLOUR,
    apply_style,
    figure_style,
)

__all__ = [
    "COLOURS",
    "FULL",
    "GPT3_COLOUR",
    "HALF",
    "REFERENCE_COLOUR",
    "STRATA_COLOUR",
    "Finding",
    "Source",
    "Value",
    "apply_style",
    "build_article",
    "build_pdf",
    "bundle",
    "check",
    "draft",
    "figure_style",
    "publish",
    "read_values",
    "record",
    "record_table",
    "republish",
    "save_figure",
    "show_table",
    "stored_source",
    "use_run",
]
