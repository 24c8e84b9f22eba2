"""Inline SVG for a page: one pair of axes in the house style, which follows the page's light or dark colours."""

import dataclasses
import html
import io
import math
import os
import re
import unittest.mock
from typing import Any, Callable, Sequence

# Matplotlib writes colours as fixed numbers. These stand for CSS variables, put in afterwards, so that one SVG serves
# both colour schemes.
INK, MUTED, GRID, BAND, PAPER = ("#00fd01", "#00fd02", "#00fd03", "#00fd04", "#00fd05")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", BAND: "band", PAPER: "paper"}
NUM_HUES = 7
MARKERS = "soD^vPX"
"""By hue, as `DASHES`: no curve or point is told from another by its colour alone. Hues from `NUM_HUES` on have the
colours once more, with other markers and dashes."""
DASHES = ((0, (4, 2)), "-", (0, (6, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), "-", (0, (2, 2)))
SIZE = (5.2, 3.5)
"""Width and height in inches."""
FONT_SIZE = 11
"""In points."""
_NUM_TICKS = 7


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure: `svg` is a complete <svg> element that carries `title` and `caption` for screen readers."""

    title: str
    caption: str
    svg: str


def colour(hue: int) -> str:
    """What stands for the page's colour --hue0 ... --hue6 in a drawing."""
    return f"#00fe{hue % NUM_HUES:02x}"


def nth(hues: Sequence[int], number: int) -> int:
    """The hue of that number, from 0: one of `hues`, behind the last of them again, but with another look."""
    turn, place = divmod(number, len(hues))
    return hues[place] + turn * NUM_HUES


def look(hue: int, label: str | None = None, **changes) -> dict[str, Any]:
    """How a line of that hue, and the points on it, look: arguments of `axes.plot`."""
    turn, place = divmod(hue, NUM_HUES)
    place = (place + 2 * turn) % NUM_HUES
    usual = {"color": colour(hue), "ls": DASHES[place], "marker": MARKERS[place], "ms": 6, "mec": PAPER, "mew": 0.6}
    if label and label[0] == "_":  # which no legend of matplotlib's shows
        label = f"\N{WORD JOINER}{label}"
    return {**usual, "lw": 1.7, "label": label, **changes}


def bar(axes, x: Sequence[float | None], y: Sequence[float | None], hue: int, lw: float = 1.6, zorder: int = 2) -> None:
    """An interval from (x[0], y[0]) to (x[1], y[1]); none where an end is missing."""
    if None not in (*x, *y):
        axes.plot(x, y, color=colour(hue), lw=lw, zorder=zorder)


def percent(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in values]


def step_axis(axes, steps: Sequence[int]) -> None:
    """Steps on a log scale where they span more than a factor of 20; ticks at steps that were measured."""
    steps = sorted(set(steps))
    positive = [s for s in steps if s > 0]
    place = float
    if positive and positive[-1] > 20 * positive[0]:
        # Step 0 stands 0.4 decades to the left of the first step: what matplotlib makes of linscale * 10 / 9.
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.36)
        place = lambda s: math.log10(s) if s > 0 else math.log10(positive[0]) - 0.4  # noqa: E731
    gap = (place(steps[-1]) - place(steps[0])) / _NUM_TICKS
    ticks = [steps[-1]]
    for step in reversed(steps):
        if place(ticks[-1]) - place(step) >= gap * 0.999:
            ticks.append(step)
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training step" + " (log scale)" * (place is not float))


def short(names: Sequence[str], limit: int = 18, dots: str = "\N{HORIZONTAL ELLIPSIS}") -> list[str]:
    """`names` with `dots` in place of what is too long; all as they are where that would make two the same."""
    cut = [name if len(name) <= limit else name[: limit - len(dots)] + dots for name in names]
    return cut if len(set(cut)) == len(set(names)) else list(names)


def figure(
    title: str,
    caption: str,
    draw: Callable,
    height: float = SIZE[1],
    *,
    width: float = SIZE[0],
    name: str | None = None,
    numbers: str = "the tables of this page",
) -> Figure:
    """Draws one pair of axes with the house style; the legend stands above them, so that it never hides a point.

    Args:
      title, caption: for screen readers too.
      draw: called with the matplotlib axes.
      height, width: inches.
      name: prefix of the ids in the SVG, one per page; made from the title where None.
      numbers: where the numbers are.
    """
    matplotlib = _matplotlib()
    settings = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
        **dict.fromkeys(("text.parse_math", "axes.spines.top", "axes.spines.right"), False),
        "svg.fonttype": "none",
        "svg.hashsalt": "selftrain",
        "font.size": FONT_SIZE,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "axes.formatter.limits": (-3, 5),
        "axes.formatter.use_mathtext": False,
        "figure.constrained_layout.use": True,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        canvas = matplotlib.figure.Figure(figsize=(width, height))
        canvas.patch.set_alpha(0)
        axes = canvas.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            columns = 1 if max(map(len, labels)) > 30 * width / SIZE[0] else 2
            canvas.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=10.5, borderaxespad=0.1)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg")
    name = name or re.sub(r"\W+", "-", title.lower())
    return Figure(title, caption, _inline(buffer.getvalue(), name, title, f"{caption} The numbers are in {numbers}."))


def _matplotlib():
    """matplotlib, imported without what its user has set: a `matplotlibrc` in the working directory, in a folder of the
    user's or named by the environment could break the import, or change a page."""
    settings, exists = {"MATPLOTLIBRC": os.devnull, "MPLBACKEND": "svg"}, os.path.exists
    with (
        unittest.mock.patch.dict(os.environ, settings),
        unittest.mock.patch("os.path.exists", lambda path: path != "matplotlibrc" and exists(path)),
    ):
        import matplotlib.figure
    return matplotlib


def _inline(svg: str, name: str, title: str, description: str) -> str:
    """A stand-alone SVG file made part of a page: scalable, themed, labelled, with ids that stay unique."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', svg).replace("url(#", f"url(#{name}-")
    svg = re.sub(r'font-family: [^;"]*;? ?', "", svg)
    for number, variable in _VARIABLES.items():
        svg = svg.replace(number, f"var(--{variable})")
    svg = re.sub(r"#00fe0(\d)", r"var(--hue\1)", svg)
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    head = (
        f'<svg {box} role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(description)}</desc>'
    )
    return re.sub(r"<svg\b.*?>", lambda _: head, svg, count=1, flags=re.DOTALL)
