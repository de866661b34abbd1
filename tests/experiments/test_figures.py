"""Every figure of every program: what it says, and that nothing of it is cut off or covered."""

import ast
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from scaling_folders import a_valley, draw_committed
from study_figures import draw_coordinates, draw_geometry, draw_vision

from experiments.analyze import figures as analyze
from experiments.compare import figures as compare
from experiments.compare.findings import Comparison
from experiments.compare.runs import Run, RunKey
from experiments.run import plots
from experiments.sobolev import fit_report, imitate_program, rates_program
from experiments.sobolev.construction_options import RatesOptions
from experiments.sobolev.options import RefineOptions, TrainOptions
from experiments.sobolev.store import Store
from experiments.terminal.figures import fit

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results" / "sobolev"
LONG = "a_run-with/a.very_long_name_that_nobody_would-type-twice_" + "seed0123456789" * 4
SHORT = ("first", "second")


def line(layers: int, low: float) -> list[float]:
    return [low + 0.1 * layer for layer in range(layers)]


def numbers(layers: int, nonzero_share: float, low: float) -> dict[str, Any]:
    """As `measure.numbers` gives them."""
    shape = {"shape": [8, 8], "ranks": {"effective": line(layers, low)}}
    spectrum = [np.linspace(1, 0.1, 8).tolist()] * layers
    x = np.linspace(-low, low, 9)
    curve = {"x": x, "mean": x**2, "low": x**2 - 0.1, "high": x**2 + 0.1}
    same = ("kurtosis", "rms", "largest_by_median", "near_zero_share", "rankme_of_eigenvalues",
            "alpha_req", "mean_norm", "largest_logit", "token_before", "active_share")  # fmt: skip
    places = [
        {**dict.fromkeys(same, value), "nonzero_share": nonzero_share}
        for value in line(layers + 1, low)
    ]
    similar = np.eye(layers + 1) * 0.5 + 0.5
    return {
        "weights": {
            name: {**shape, "singular_values": spectrum} for name in ("ffn/w_up", "attention/w_o")
        },
        "inside": {
            "inputs": places[:-1], "hidden": places[:-1], "states": places,
            "sparsity": places[:-1], "attention": places[:-1],
            "curves": [curve] * layers, "cosine": similar, "cka": similar,
        },
        "gradients": {f"layers/{name}/w": line(layers, low) for name in ("ffn", "attention")},
    }  # fmt: skip


def measured(
    names: tuple[str, ...], *, layers: int = 2, nonzero_share: float = 0.0, untrained: bool = True
) -> dict[str, Any]:
    """As `measure.measure` gives them, for each name."""
    return {
        name: {
            "model": {"activation": "poly_norm"},
            **numbers(layers, nonzero_share, 1 + index),
            **({"untrained": numbers(layers, nonzero_share, 3.0)} if untrained else {}),
        }
        for index, name in enumerate(names)
    }


def a_run(arm: str, seed: int, layers: int, *, diverged: bool = False, still: bool = False) -> Run:
    key = RunKey(arm, 0.01, seed, (5, 10))
    if diverged:
        return Run(key, True, (), (), (), (), (), 1.0)
    steps = tuple(range(10))
    coeffs = [[0.0, 0.0 if still else 0.1 * seed + layer] for layer in range(layers)]
    loss = tuple(5 - 0.1 * step + 0.1 * seed for step in steps)
    return Run(key, False, (3.0, 2.0), steps, loss, loss, ({"coeffs": coeffs},) * 10, 1.0)


def study(arms: tuple[str, ...], *, compared: bool = True) -> Any:
    """What `compare.draw_all` reads of findings."""
    result = SimpleNamespace(low=-0.2, high=-0.1, mean=-0.15, found=True)
    return SimpleNamespace(
        study="activations",
        arms=[SimpleNamespace(name=arm, curve=((10, 3.0), (20, 2.0))) for arm in arms],
        comparisons=[
            Comparison(arm, arms[0], budget, result, 0.1)  # pyright: ignore[reportArgumentType]
            for arm in arms[1:]
            for budget in ("tokens", "seconds")
            if compared
        ],
        sensitivities=[a_valley(arm) for arm in arms] if compared else [],
    )


def draw_study(folder: Path, arms: tuple[str, ...], layers: int = 2) -> None:
    runs = {arm: [a_run(arm, seed, layers) for seed in (0, 1)] for arm in arms}
    compare.draw_all(folder, study(arms), runs, 100)


def stored(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def draw_rates(folder: Path, options: RatesOptions) -> None:
    found = stored("rates")
    rows = [r for r in found["rows"] if r["d"] in options.dims and r["n"] in options.orders]
    rates_program.draw(Store(folder, "rates"), options, rows, found["saturation_rows"])


def draw_fits(folder: Path, name: str, options: TrainOptions, title: str) -> None:
    means = stored(name)["summary"]
    for metric in ("l2", "h1"):
        fit_report.draw(Store(folder, name), options, means, metric, title)


def draw_plots(folder: Path, title: str, names: tuple[str, ...]) -> None:
    x = np.linspace(-2, 2, 9)
    records: list[dict[str, Any]] = [
        {"step": step, "loss": 3.0 - step, "expert_load": [0.5, 1.5]} for step in range(2)
    ]
    plots.plot_loss(folder / "loss", [*records, {"step": 1, "heldout_loss": 2.5}], title)
    plots.plot_load(folder / "load", records, title)
    for depth in (2, 24):
        layers = [x * (1 + layer) for layer in range(depth)]
        plots.plot_shapes(folder / f"shapes{depth}", x, x, layers, title=title, note="Of x.")
    for name, scale in (("near", 1.0), ("far", 50.0)):
        ratios = {name: (0.9 * scale, scale, 1.1 * scale) for name in names}
        plots.plot_ratios(folder / name, ratios, title=title, label=f"time / {names[0]}'s")


CASES: dict[str, Callable[[Path], Any]] = {
    "plots": lambda f: draw_plots(f, "tiny, poly_norm", SHORT),
    "plots, long names": lambda f: draw_plots(f, LONG, (LONG, f"{LONG} again", "one", "two")),
    "analyze": lambda f: analyze.draw_all(f, measured(SHORT, nonzero_share=0.5)),
    "analyze, one model": lambda f: analyze.draw_all(f, measured(("run",), untrained=False)),
    "analyze, long names": lambda f: analyze.draw_all(f, measured((LONG, "_again", "$x$"))),
    "analyze, many": lambda f: analyze.draw_all(
        f, measured(tuple(f"run-of-an-activation-{i}" for i in range(7)), layers=24)
    ),
    "compare": lambda f: draw_study(f, SHORT),
    "compare, long names": lambda f: draw_study(f, (LONG[:60], LONG[30:100], "third"), layers=12),
    "scaling": draw_committed,
    "vision": draw_vision, "coordinates": draw_coordinates,
    "geometry": lambda f: draw_geometry(f, ("tanh", LONG[:40])),
    "rates": lambda f: draw_rates(f, RatesOptions()),
    "rates, one panel": lambda f: draw_rates(f, RatesOptions(orders=(1,), dims=(1,))),
    "imitate": lambda f: imitate_program.draw(Store(f, "imitate"), stored("imitate")["rows"]),
    "train": lambda f: draw_fits(f, "train", TrainOptions(), "Trained networks of equal size"),
    "refine": lambda f: draw_fits(f, "refine", RefineOptions(), "Constructed networks, trained"),
}  # fmt: skip
QUICK = ("plots, long names", "analyze, long names", "compare, long names", "rates, one panel")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Figures by name, instead of as files."""
    figures: dict[str, Figure] = {}

    def keep(figure: Figure, path: Path) -> None:
        figures.setdefault(path.with_suffix(".png").stem, figure)

    monkeypatch.setattr("experiments.terminal.figures.save", keep)
    return figures


def labels(figure: Figure) -> Iterator[tuple[str, Any]]:
    """Titles, labels, notes and legends, as drawn."""
    yield from (("above", text) for text in figure.texts)  # the title is one of them
    yield from (("legend", legend) for legend in figure.legends)
    for axes in figure.axes:
        yield from (("panel", axes.title), ("x", axes.xaxis.label), ("y", axes.yaxis.label))


def ticks(axes: Axes) -> Iterator[list[Any]]:
    """The tick labels that are drawn, in order, of each axis."""
    for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
        low, high = sorted(axis.get_view_interval())
        shown = [t for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
        yield [t.label1 for t in shown if t.label1.get_text() and t.label1.get_visible()]


def check(name: str, figure: Figure) -> None:
    figure.draw_without_rendering()
    canvas = figure.bbox
    words = [
        (f"{kind} {getattr(artist, 'get_text', str)()!r}", artist.get_window_extent())
        for kind, artist in labels(figure)
        if not isinstance(artist, Text) or artist.get_text()
    ]
    boxes = list(words)
    for axes in figure.axes:
        panel = axes.get_window_extent()
        if axes.get_label() != "<colorbar>":
            assert min(panel.width, panel.height) > 60, f"{name}: nothing is left of a panel"
        boxes.append(("panel", panel))
        for group in ticks(axes):
            extents = [(f"tick {label.get_text()}", label.get_window_extent()) for label in group]
            boxes += extents
            for (one, a), (two, b) in itertools.pairwise(extents):
                assert not overlap(a, b), f"{name}: {one} on {two}"
    for what, box in boxes:
        inside = canvas.x0 <= box.x0 and box.x1 <= canvas.x1 + 0.5
        inside &= canvas.y0 <= box.y0 and box.y1 <= canvas.y1 + 0.5
        assert inside, f"{name}: {what} leaves the canvas: {box} of {canvas}"
    for (one, a), (two, b) in itertools.combinations(words, 2):
        assert not overlap(a, b), f"{name}: {one} on {two}"


def overlap(one: Any, two: Any) -> bool:
    return one.shrunk(0.98, 0.98).overlaps(two.shrunk(0.98, 0.98))


def said(figure: Figure) -> str:
    texts = [artist for _, artist in labels(figure) if isinstance(artist, Text)]
    keys = [text for legend in figure.legends for text in legend.get_texts()]
    return " ".join(" ".join(text.get_text().split()) for text in [*texts, *keys])


def has_band(axes: Axes) -> bool:
    return any(type(part).__name__ == "FillBetweenPolyCollection" for part in axes.collections)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in QUICK else pytest.mark.slow) for c in CASES]
)
def test_every_figure_says_what_it_shows_and_nothing_is_cut_off(
    case: str, drawn: dict[str, Figure], tmp_path: Path
):
    CASES[case](tmp_path)
    assert drawn
    for name, figure in drawn.items():
        check(f"{case}: {name}", figure)
        assert figure._suptitle is not None  # pyright: ignore[reportAttributeAccessIssue]
        assert figure._suptitle.get_text()  # pyright: ignore[reportAttributeAccessIssue]
        for axes in figure.axes:
            if axes.get_label() != "<colorbar>" and axes.axison:
                assert axes.get_xlabel(), name
                assert axes.get_ylabel() or any(
                    label.get_text() for label in next(reversed(list(ticks(axes))))
                )
        if any(map(has_band, figure.axes)):
            assert "bands: " in said(figure), name
        lines = [part for axes in figure.axes for part in axes.lines]
        if len({part.get_color() for part in lines if isinstance(part.get_color(), str)}) > 1:
            assert figure.legends or "ines: " in said(figure) or name in ("near", "far"), name
        if any(part.get_linestyle() == "--" for part in lines):
            assert "ashed: " in said(figure) or figure.legends, name


def draws(node: ast.AST) -> bool:
    calls = (part.func for part in ast.walk(node) if isinstance(part, ast.Call))
    return any(isinstance(call, ast.Name) and call.id == "panels" for call in calls)


def test_no_drawing_function_is_left_out():
    sources = [path.read_text() for path in (ROOT / "experiments").rglob("*.py")]
    drawing = {
        node.name
        for source in sources
        if " panels(" in source
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and draws(node)
    }
    assert sum("FigureCanvasAgg(" in source for source in sources) == 1
    assert drawing == {
        "plot_loss", "plot_load", "plot_shapes", "plot_ratios", "_draw_ranks", "_draw_spectra",
        "_draw_similarity", "_draw_activity", "_draw_gradients", "_draw_curves", "_draw_dynamics",
        "_draw_decayed", "_draw_differences", "_draw_coefficients", "draw", "_draw_tokens",
        "_draw_compute", "_draw_residuals", "_plane", "_separability", "draw_rates", "_curves",
        "_differences", "curves", "pictures",
    }  # fmt: skip


def shown(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def test_a_panel_of_zeros_is_left_out_and_named(drawn: dict[str, Figure], tmp_path: Path):
    analyze.draw_all(tmp_path, measured(SHORT))
    assert "outputs that are not zero" not in shown(drawn["activity"])
    assert "Left out, zero in all layers: outputs that are not zero." in said(drawn["activity"])
    drawn.clear()
    analyze.draw_all(tmp_path, measured(SHORT, nonzero_share=0.5))
    assert "outputs that are not zero" in shown(drawn["activity"])
    assert "Left out" not in said(drawn["activity"])
    nothing = measured(SHORT, untrained=False)
    for found in nothing.values():
        found["gradients"]["layers/attention/w"] = [0.0, 0.0]
    drawn.clear()
    analyze.draw_all(tmp_path, nothing)
    assert shown(drawn["gradients"]) == ["ffn"]


def test_panels_that_are_compared_have_one_scale(drawn: dict[str, Figure], tmp_path: Path):
    analyze.draw_all(tmp_path, measured(SHORT, nonzero_share=0.5))
    for name in ("ranks", "spectra", "gradients", "curves"):
        limits = {(axes.get_xlim(), axes.get_ylim()) for axes in drawn[name].axes}
        assert len(drawn[name].axes) > 1
        assert len(limits) == 1, name
    by_unit: dict[str, set[Any]] = {}
    for axes in drawn["activity"].axes:
        by_unit.setdefault(axes.get_ylabel(), set()).add(axes.get_ylim())
    assert {unit: len(limits) for unit, limits in by_unit.items()} == dict.fromkeys(by_unit, 1)
    assert len(by_unit) == 9


def test_a_random_model_of_the_same_config_is_drawn_dashed(
    drawn: dict[str, Figure], tmp_path: Path
):
    analyze.draw_all(tmp_path, measured(SHORT))
    for name in ("ranks", "spectra", "activity", "gradients", "curves"):
        assert "Dashed: a random model" in said(drawn[name])
        for axes in drawn[name].axes:
            assert {"-", "--"} <= {part.get_linestyle() for part in axes.lines}, name
    drawn.clear()
    analyze.draw_all(tmp_path, measured(SHORT, untrained=False))
    assert {part.get_linestyle() for part in drawn["ranks"].axes[0].lines} == {"-"}
    assert "random" not in said(drawn["ranks"])


def test_a_study_has_no_figure_of_nothing(drawn: dict[str, Figure], tmp_path: Path):
    runs = {"first": [a_run("first", 1, 2)], "second": [a_run("second", 1, 2, diverged=True)]}
    made = compare.draw_all(tmp_path, study(SHORT, compared=False), runs, 100)
    assert [path.name for path in made] == ["dynamics", "decayed", "coefficients-first"]
    assert shown(drawn["dynamics"]) == ["training loss", "gradient"]
    assert shown(drawn["coefficients-first"]) == ["a_1"]
    assert "Left out, zero throughout: a_0." in said(drawn["coefficients-first"])
    still = {"first": [a_run("first", 1, 1, still=True)]}
    made = compare.draw_all(tmp_path, study(SHORT[:1], compared=False), still, 100)
    assert [path.name for path in made] == ["dynamics", "decayed"]


@pytest.mark.parametrize("name", [LONG, "two $x$ and $y$", "\udcff bytes", "漢字", "a b" * 90])
def test_any_name_is_plain_text_that_fits(name: str):
    lines = fit(name, 2.0).split("\n")
    assert "".join("".join(lines).split()) == "".join(
        name.replace("$", r"\$").replace("\udcff", r"\udcff").split()
    )
    assert max(map(len, lines)) < 60
