"""Draws the batches as an SVG: a few rectangles and words, legible in a README."""

from collections.abc import Sequence
from html import escape

from tests.benchmarks.figures import Figures

WIDTH, LEFT, BAR, GAP = 760, 130, 13, 12
COLOURS = {"ours": "#2f6f4f", "textbook": "#b5553a", "floor": "#9aa5ad"}
SHOWN = ("ten known", "ten new", "ten, 10 % fail")


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" {more}>{escape(words)}</text>'


def _panel(
    top: int, title: str, rows: Sequence[tuple[str, str, float, str]]
) -> tuple[list[str], int]:
    """Draw bars of (group, competitor, length, words). Return the shapes, and where they end."""
    shapes = [_text(0, top, title, 'font-weight="bold"')]
    longest = max(length for _, _, length, _ in rows)
    y, group = top + 6, ""
    for name, competitor, length, words in rows:
        if name != group:
            y += GAP
            shapes.append(_text(0, y + 2 * BAR - 3, name))
            group = name
        width = length / longest * (WIDTH - LEFT - 215)
        shapes.append(
            f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" '
            f'fill="{COLOURS[competitor]}"/>'
        )
        shapes.append(_text(LEFT + width + 6, y + BAR - 3, f"{competitor}, {words}"))
        y += BAR
    return shapes, y + 34


def batches(results: Sequence[Figures]) -> str:
    """Draw time per batch, and CPU per notification, with BLiP at 100 ms."""
    shown = [figures for figures in results if figures.latency and figures.case in SHOWN]
    times = [
        (f.case, f.competitor, f.p50, f"{f.p50 * 1000:.0f} ms (p95 {f.p95 * 1000:.0f})")
        for f in shown
    ]
    cpu = [(f.case, f.competitor, f.cpu, f"{f.cpu * 1000:.1f} ms") for f in shown]
    upper, end = _panel(18, "Time per batch, BLiP answering in 100 ms (median)", times)
    lower, end = _panel(end, "CPU per notification (median)", cpu)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -4 {WIDTH} {end - 14}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#222">',
            f'<rect x="-10" y="-4" width="{WIDTH}" height="{end - 14}" fill="#fff"/>',
            *upper,
            *lower,
            "</svg>\n",
        ]
    )
