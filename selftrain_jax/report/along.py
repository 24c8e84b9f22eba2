"""Pictures of extraction and likelihood along whole texts: strips of one text, a heat map of several."""

from typing import Any, Mapping, Sequence

from selftrain_jax.report import svg
from selftrain_jax.report.data import ReportData, label

_STEPS = 10
_KINDS = {
    "extraction": "share of probes that are extracted, by where their suffix begins",
    "likelihood": "probability per token of the suffixes (geometric mean), by where they begin",
}


def figures(data: ReportData, hues: Mapping[str, int]) -> list[svg.Figure]:
    """Of one text all models and groups in one picture; of several texts one a model, of the last group, which has the
    longest prefixes where they differ."""
    if not data.along:
        return []
    texts = {row["text"] for row in data.along}
    groups = list(dict.fromkeys(row["group"] for row in data.along))
    if len(texts) == 1:
        named = [(row["model"] + f", {row['group']}" * (len(groups) > 1), row) for row in data.along]
        return [_strips(f"{kind.capitalize()} along the text", kind, named, hues) for kind in _KINDS]
    made = []
    for model in dict.fromkeys(row["model"] for row in data.along):
        rows = [(str(row["text"]), row) for row in data.along if (row["model"], row["group"]) == (model, groups[-1])]
        title = f"along the texts, {label(model)}" + f", {groups[-1]}" * (len(groups) > 1)
        made += [_strips(f"{kind.capitalize()} {title}", kind, rows, hues, several=True) for kind in _KINDS]
    return made


def _strips(
    title: str, kind: str, rows: Sequence[tuple[str, Mapping[str, Any]]], hues: Mapping[str, int], several: bool = False
) -> svg.Figure:
    def draw(axes):
        for y, (_, row) in enumerate(rows):
            cells = [(begin, end, value) for begin, end, value in zip(row["edges"], row["edges"][1:], row[kind])]
            known = [(begin, end) for begin, end, value in cells if value is not None]
            _boxes(axes, known, y, svg.BAND, 1.0)
            for step in range(1, _STEPS + 1):
                chosen = [(begin, end) for begin, end, v in cells if v is not None and round(v * _STEPS) == step]
                _boxes(axes, chosen, y, svg.colour(hues[row["model"]]), step / _STEPS)
        axes.set_yticks(range(len(rows)), svg.short([name for name, _ in rows], 24))
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="tokens into the text")
        axes.set_xlim(min(row["edges"][0] for _, row in rows), max(row["edges"][-1] for _, row in rows))
        axes.grid(False)

    return svg.figure(
        title,
        f"The darker, the higher the {_KINDS[kind]}; without colour: below 5 %. Overlapping windows share tokens."
        + " Texts are numbered as they come among the probes; those of few probes are left out." * several,
        draw,
        max(1.6, 0.9 + 0.26 * len(rows)),
        numbers="report.json",
    )


def _boxes(axes, spans: Sequence[tuple[float, float]], y: float, colour: str, alpha: float) -> None:
    """Boxes of one look as one path: thousands of elements would make a page slow."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if spans:
        boxes = [
            Path([(a, y - 0.4), (b, y - 0.4), (b, y + 0.4), (a, y + 0.4), (a, y - 0.4)], closed=True) for a, b in spans
        ]
        axes.add_patch(PathPatch(Path.make_compound_path(*boxes), facecolor=(colour, alpha), lw=0))
