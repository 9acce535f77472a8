"""The look of figures that could stand in a paper: type, colours, sizes, and saving as PNG and SVG.

Plain `matplotlib.figure.Figure` objects on the Agg canvas; pyplot and its global state are not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from facerec.files import replacing

# Colours that people with any colour vision can tell apart (Okabe and Ito), black last.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GRAY: Final = "#5f6368"
LIGHT: Final = "#d9dce0"
DPI: Final = 200

_PAPER: Final[dict[Any, Any]] = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.4,
    "svg.hashsalt": "facerec",  # the same figure is the same file
}


@contextmanager
def paper() -> Iterator[None]:
    """Figures made and saved within have the look of a paper."""
    with rc_context(_PAPER):
        yield


def figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure, `width` by `height` inches."""
    made = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(made)
    return made


def frame(axes: Axes, title: str = "", x: str = "", y: str = "") -> Axes:
    """A grid behind the data, and labels."""
    axes.grid(color=LIGHT, lw=0.6)
    axes.set(title=title, xlabel=x, ylabel=y)
    return axes


def save(made: Figure, folder: Path, name: str, formats: Iterable[str]) -> list[Path]:
    """Write ``folder/name.<format>`` for each format (``png``, ``svg``, ``pdf``); returns the paths.

    Raises:
        StorageError: a file could not be written.
    """
    paths = []
    for kind in formats:
        path = folder / f"{name}.{kind}"
        with replacing(path) as file:
            made.savefig(file, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
        paths.append(path)
    return paths
