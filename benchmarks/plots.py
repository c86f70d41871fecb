"""Pictures of what was measured: bars for a job and its peers, lines for a cost that grows. SVG, as text, no library.

A picture needs nothing but rectangles, lines and words; it is read in a browser on any background.
"""

from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 760
ROW: Final = 26
LEFT: Final = 270
TOP: Final = 46
HEIGHT: Final = 380
COLOURS: Final = ("#1f6feb", "#8b949e", "#d29922", "#2da44e", "#cf222e", "#8250df", "#bf3989", "#57606a")
FONT: Final = 'font-family="sans-serif" font-size="13"'


@dataclass(frozen=True, slots=True)
class Bars:
    """Seconds of everybody who did one job; the first is ours."""

    title: str
    rows: tuple[tuple[str, float], ...]
    bound: float | None = None
    """The least that the machine needs, as a line."""

    def svg(self) -> str:
        """The picture."""
        most = max([value for _, value in self.rows] + [self.bound or 0.0]) or 1.0
        room = WIDTH - LEFT - 80
        parts = [_text(10, 24, self.title, bold=True)]
        for index, (name, value) in enumerate(self.rows):
            y = TOP + index * ROW
            colour = COLOURS[0] if index == 0 else COLOURS[1]
            length = max(1.0, value / most * room)
            parts += [
                _text(LEFT - 8, y + 15, name, anchor="end", bold=index == 0),
                f'<rect x="{LEFT}" y="{y + 2}" width="{length:.1f}" height="{ROW - 8}" fill="{colour}"/>',
                _text(LEFT + length + 6, y + 15, f"{value:.2f} s"),
            ]
        bottom = TOP + len(self.rows) * ROW
        if self.bound is not None:
            x = LEFT + self.bound / most * room
            parts += [
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{bottom}" stroke="{COLOURS[4]}" '
                'stroke-dasharray="4 3"/>',
                _text(x, bottom + 15, f"bound {self.bound:.2f} s", anchor="middle"),
            ]
        return _picture(bottom + 24, parts)


@dataclass(frozen=True, slots=True)
class Lines:
    """Several series over the same axis, each point (x, y), ascending; x is drawn evenly, by rank."""

    title: str
    across: str
    up: str
    series: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]

    def svg(self) -> str:
        """The picture."""
        places = sorted({x for _, points in self.series for x, _ in points})
        most = max((y for _, points in self.series for _, y in points), default=1.0) or 1.0
        left, bottom, room = 70, HEIGHT - 60, WIDTH - 70 - 190
        step = room / max(len(places) - 1, 1)

        def at(x: float, y: float) -> tuple[float, float]:
            return left + places.index(x) * step, bottom - y / most * (bottom - TOP)

        parts = [_text(10, 24, self.title, bold=True), _text(left, TOP - 8, self.up)]
        for tick in range(5):
            value = most * tick / 4
            _, y = at(places[0], value)
            parts += [
                f'<line x1="{left}" x2="{left + room}" y1="{y:.1f}" y2="{y:.1f}" stroke="{COLOURS[1]}" '
                'stroke-opacity="0.3"/>',
                _text(left - 6, y + 4, f"{value:.3g}", anchor="end"),
            ]
        parts += [_text(at(x, 0)[0], bottom + 18, f"{x:g}", anchor="middle") for x in places]
        parts.append(_text(left + room / 2, bottom + 40, self.across, anchor="middle"))
        for index, (name, points) in enumerate(self.series):
            colour = COLOURS[index % len(COLOURS)]
            spots = [at(x, y) for x, y in points]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
            y = TOP + 12 + index * 20
            parts += [
                f'<rect x="{left + room + 16}" y="{y - 9}" width="10" height="10" fill="{colour}"/>',
                _text(left + room + 32, y, name),
            ]
        return _picture(HEIGHT, parts)


Plot = Bars | Lines


def _text(x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'


def _picture(height: float, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" {FONT} fill="#1f2328">'
    )
    ground = f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>'
    return "\n".join([head, ground, *parts, "</svg>", ""])
