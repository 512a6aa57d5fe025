"""The one figure style: colours that colour-blind eyes tell apart, sizes that print at 1:1."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from cycler import cycler

# Okabe and Ito's eight colours, distinct for every common form of colour blindness
# (https://jfly.uni-koeln.de/color/).
COLOURS = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "orange": "#E69F00",
    "sky_blue": "#56B4E9",
    "purple": "#CC79A7",
    "black": "#000000",
    "yellow": "#F0E442",
}
# The same thing has the same colour in every figure.
STRATA_COLOUR = COLOURS["blue"]
GPT3_COLOUR = COLOURS["vermillion"]
REFERENCE_COLOUR = "#595959"  # chance, unigram model, guide lines

# Figure sizes in inches, those of the text and of \halfwidth in paper/strata.sty: a figure is
# printed at 1:1, and its 8-point labels are 8 points on paper.
FULL = (6.3, 2.8)
HALF = (3.1, 2.4)

_STYLE: dict[Any, Any] = {
    "figure.figsize": FULL,
    "figure.dpi": 120,
    "figure.constrained_layout.use": True,
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "errorbar.capsize": 2,
    "image.cmap": "cividis",  # even in lightness, and the same to colour-blind eyes
    # line styles change with the colours, so that a print without colour can be read too
    "axes.prop_cycle": cycler(color=list(COLOURS.values())[:7])
    + cycler(linestyle=["-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (3, 1)), (0, (1, 1))]),
    "pdf.fonttype": 42,  # TrueType outlines: text stays text
}


def apply_style() -> None:
    """Set the project's figure style for the rest of the notebook."""
    mpl.rcParams.update(_STYLE)


@contextmanager
def figure_style() -> Iterator[None]:
    """The project's figure style inside a `with` block, the previous one after it."""
    with mpl.rc_context(_STYLE):
        yield
