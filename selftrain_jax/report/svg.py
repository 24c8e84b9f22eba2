"""Inline SVG for a report's page: one pair of axes in the house style, which follows the page's light or dark
colours.
"""

import dataclasses
import re
from typing import Callable

# Matplotlib writes colours as fixed numbers. These stand for CSS variables, put in afterwards, so that one SVG serves
# both colour schemes.
INK, MUTED, GRID, BAND, PAPER = ("#00fd01", "#00fd02", "#00fd03", "#00fd04", "#00fd05")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", BAND: "band", PAPER: "paper"}
NUM_HUES = 7
MARKERS = "soD^vPX"
"""By hue, as `DASHES`: no curve or point is told from another by its colour alone."""
DASHES = ((0, (4, 2)), "-", (0, (6, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), "-", (0, (2, 2)))
SIZE = (5.2, 3.5)
"""Width and height in inches at 11 point."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure: `svg` is a complete <svg> element that carries `title` and `caption` for screen readers."""

    title: str
    caption: str
    svg: str


def colour(hue: int) -> str:
    """What stands for the page's colour --hue0 ... --hue6 in a drawing."""
    return f"#00fe{hue:02x}"


def short(name: str, limit: int = 18) -> str:
    """`name` with an ellipsis in place of what is too long."""
    return name if len(name) <= limit else name[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


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
    import io

    import matplotlib
    from matplotlib.figure import Figure as Canvas

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "selftrain",
        "font.size": 11,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "axes.formatter.limits": (-3, 5),
        "axes.formatter.use_mathtext": False,
        "figure.constrained_layout.use": True,
    }
    with matplotlib.rc_context(settings):
        canvas = Canvas(figsize=(width, height))
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


def _inline(svg: str, name: str, title: str, description: str) -> str:
    """A stand-alone SVG file made part of a page: scalable, themed, labelled, with ids that stay unique."""
    import html

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
