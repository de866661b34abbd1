"""What all figures have in common: style, title, what a band is, one legend, room for every word.

Matplotlib is imported on first use.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from polycom_jax import storage
from polycom_jax.storage import Place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.titlesize": 11,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3 fonts
    "savefig.dpi": 120,  # small enough for a repository; the PDFs are for print
}
# Okabe and Ito's palette: distinct to colour-blind eyes and in grey.
BLUE, ORANGE = "#0072B2", "#D55E00"
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "0.25", "#8C6D31", "#7F3C8D")
"""One a curve, in order; then again, dashed or with the next marker."""
MARKERS = "os^vDP*X"
REFERENCE: Any = {"color": "0.45", "linestyle": "--", "linewidth": 1.0}
"""Of lines that nothing was measured for: theory's."""
NAMED_LAYERS = 8
"""Up to so many layers have their names in a legend; more are named by a colour bar."""

_NOTE_SIZE = 8
_PAD = 0.08  # inches


@contextlib.contextmanager
def panels(
    path: Place,
    count: int,
    *,
    title: str,
    note: str = "",
    columns: int = 3,
    size: tuple[float, float] = (4.0, 3.0),
    shared: str = "",
) -> Iterator[list["Axes"]]:
    """`count` pairs of axes in one figure, saved as `path`.png and `path`.pdf.

    Labels of what was drawn become one legend below, each once. Titles and labels are broken into
    lines where they are wider than their place, and the figure grows by what they need.

    Args:
        path: without a suffix.
        count: of panels.
        title: above all of them.
        note: below the title: what bands and dashed lines are, and what was left out.
        columns: panels in a row.
        size: of a panel: width and height in inches.
        shared: "x", "y" or "xy": axes that all panels have in common.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = size
    columns = min(columns, count)
    rows = -(-count // columns)
    with mpl.rc_context(STYLE):
        # Without pyplot: no window, no global figure, no backend to choose.
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes: list[Axes] = []
        for place in range(1, count + 1):
            same = {f"share{letter}": axes[0] for letter in shared if axes}
            axes.append(figure.add_subplot(rows, columns, place, **same))
        yield axes
        with _any_script():
            _fit_panels(figure, width, height)
            _frame(figure, title, note)
            save(figure, path)


def save(figure: "Figure", path: Place) -> None:
    """Writes `path`.png and `path`.pdf, each as a whole."""
    for kind in ("png", "pdf"):
        drawn = io.BytesIO()
        figure.savefig(drawn, format=kind)
        storage.write(path.with_suffix(f".{kind}"), drawn.getvalue())


@contextlib.contextmanager
def _any_script() -> Iterator[None]:
    """Without a warning for each letter that the font has not: names are as people gave them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def fit(text: str, inches: float, size: float = 9) -> str:
    """The text in lines of at most that width: broken at spaces, else at signs, else anywhere.

    What Matplotlib would take for a formula is plain text.
    """
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    dots = 100
    renderer, font = RendererAgg(1, 1, dots), FontProperties(size=size)

    def fits(line: str) -> bool:
        across = renderer.get_text_width_height_descent(line.strip(), font, ismath=False)[0]
        return across <= inches * dots

    text = text.encode("utf-8", "backslashreplace").decode()
    with _any_script():
        lines = [short for line in text.split("\n") for short in _broken(line, fits)]
    return re.sub(r"(?<!\\)\$", r"\\$", "\n".join(lines))


def _broken(
    text: str,
    fits: Callable[[str], bool],
    ends: Sequence[str] = (r"(?<= )", r"(?<=[-_/.,:])", r"(?<=.)"),
) -> list[str]:
    """Lines that fit: broken at the first of `ends`, and where that is not enough, at the next."""
    if fits(text) or not ends:
        return [text.strip()]
    lines = [""]
    for piece in re.split(ends[0], text):
        if not lines[-1] or fits(lines[-1] + piece):
            lines[-1] += piece
        else:
            lines.append(piece)
    return [short for line in lines for short in _broken(line, fits, ends[1:])]


def _fit_panels(figure: "Figure", width: float, height: float) -> None:
    """Breaks titles and labels of all axes that are wider than a panel; numbers in plain digits."""
    from matplotlib.ticker import LogFormatter, LogFormatterSciNotation

    class Plain(LogFormatter):
        """30 and 0.01 rather than 3 x 10^1 and 10^-2, where a decade or two are shown."""

        def _num_to_string(self, x: float, vmin: float, vmax: float) -> str:
            return f"{x:g}"

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            few = 1e-3 < low < high < 1e5 and high < 1e3 * low
            if few and isinstance(axis.get_major_formatter(), LogFormatterSciNotation):
                axis.set_major_formatter(Plain())
                if isinstance(axis.get_minor_formatter(), LogFormatterSciNotation):
                    axis.set_minor_formatter(Plain())
        axes.set_title(fit(axes.get_title(), 0.85 * width, STYLE["axes.titlesize"]))
        axes.set_xlabel(fit(axes.get_xlabel(), 0.8 * width))
        axes.set_ylabel(fit(axes.get_ylabel(), 0.75 * height))


def _frame(figure: "Figure", title: str, note: str) -> None:
    """Title and note above the panels and a legend below, for which the figure grows."""
    width, inner = figure.get_size_inches()
    # With a place of its own, or the layout would make room for it once more.
    head = figure.suptitle(fit(title, 0.94 * width, STYLE["figure.titlesize"]), y=1, va="top")
    words = fit(note, 0.94 * width, _NOTE_SIZE)
    below = figure.text(0.5, 0.5, words, ha="center", va="top", size=_NOTE_SIZE, color="0.35")
    legend = _legend(figure, 0.94 * width)

    def tall(artist: Any) -> float:
        return artist.get_window_extent().height / figure.dpi + _PAD

    first, second = tall(head), tall(below) if note else 0.0
    foot = tall(legend) if legend else 0.0
    whole = inner + first + second + foot + _PAD
    figure.set_size_inches(width, whole)
    head.set_y(1 - _PAD / whole)
    below.set_y(1 - (_PAD + first) / whole)
    if legend:
        legend.set_bbox_to_anchor((0.5, 0.5 * _PAD / whole), figure.transFigure)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, foot / whole, 1, inner / whole))  # pyright: ignore[reportCallIssue]


def _legend(figure: "Figure", width: float) -> Any:
    """Each label once, in as many columns as the width takes; None without labels."""
    shown: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    labels = [fit(label, width - 0.6, STYLE["legend.fontsize"]) for label in shown]
    for columns in range(min(len(labels), 6), 0, -1):
        legend = figure.legend(
            list(shown.values()), labels, loc="lower center", ncols=columns, borderaxespad=0
        )
        if columns == 1 or legend.get_window_extent().width <= width * figure.dpi:
            return legend
        legend.remove()
    return None


def curve_look(index: int) -> dict[str, Any]:
    """Colour and marker of a curve with points, which no other curve of a figure has."""
    again, place = divmod(index, len(COLOURS))
    return {"color": COLOURS[place], "marker": MARKERS[again % len(MARKERS)], "markersize": 3}


def layer_line(layer: int, layers: int) -> dict[str, Any]:
    """Colour of a layer's line, and its label where there are few."""
    import matplotlib as mpl

    colour = mpl.colormaps["viridis"](0.9 * layer / max(layers - 1, 1))  # the rest is too pale
    return {"color": colour, "label": f"layer {layer}" if layers <= NAMED_LAYERS else None}


def layer_bar(axes: Sequence["Axes"], layers: int) -> None:
    """A colour bar beside the axes where layers are too many for a legend."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if layers > NAMED_LAYERS:
        scale = Normalize(vmin=0, vmax=(layers - 1) / 0.9)
        shown = ScalarMappable(scale, mpl.colormaps["viridis"])
        colour_bar(shown, axes, "layer").ax.set_ylim(0, layers - 1)


def colour_bar(shown: Any, axes: Sequence["Axes"], label: str) -> Any:
    """A bar beside all of the axes, for what they show in colours."""
    figure, place = axes[0].figure, axes[0].get_subplotspec()
    assert figure is not None
    rows = place.get_gridspec().nrows if place else 1
    return figure.colorbar(shown, ax=list(axes), label=label, aspect=20 * rows)
