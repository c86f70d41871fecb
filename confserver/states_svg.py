"""The table of states as a picture, drawn from the table itself: docs/states.svg cannot say anything else."""

from typing import Final

from confserver.states import AT_WORK, TRANSITIONS, Event, State

WIDTH, HEIGHT = 1000, 620
_BOX_WIDTH, _BOX_HEIGHT = 170, 40
_PLACES: Final = {
    State.REPLICATION_STOPPED: (130, 60),
    State.FAILED_OVER: (130, 190),
    State.MIGRATED: (130, 320),
    State.REPROTECTING: (420, 60),
    State.PROTECTED: (700, 190),
    State.REPLICATING: (880, 60),
    State.FAILING_BACK: (880, 320),
    State.CANCELLING: (560, 320),
    State.UNPROTECTING: (410, 190),
    State.FAILED_BACK: (700, 450),
    State.COMMITTING: (420, 560),
    State.COMMITTED: (130, 560),
}
"""Centre of each state's box."""
_STYLE: Final = (
    "text{font:13px sans-serif;text-anchor:middle;dominant-baseline:middle}"
    ".event{font-size:11px;fill:#444}.box{fill:#eef3fb;stroke:#345;stroke-width:1.5}"
    ".work{fill:#fff6e0;stroke-dasharray:4 3}"
    "path{fill:none;stroke:#678;stroke-width:1.3;marker-end:url(#tip)}.undone{stroke:#b33;stroke-dasharray:5 3}"
)


def svg() -> str:
    """SVG text with every state and every transition of the table; dashed boxes are states in which a job runs."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>States of an item</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<polygon points="0,0 8,4 0,8" fill="#678"/></marker></defs>',
    ]
    for (before, event), following in TRANSITIONS.items():
        lines += _arrow(before, event, following)
    for state in State:
        x, y = _PLACES[state]
        kind = "box work" if state in AT_WORK else "box"
        lines.append(
            f'<rect class="{kind}" x="{x - _BOX_WIDTH // 2}" y="{y - _BOX_HEIGHT // 2}" '
            f'width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="8"/><text x="{x}" y="{y}">{state.value}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def _arrow(before: State, event: Event, following: State) -> list[str]:
    """A curve from border to border, bent to one side so that an arrow and its way back do not meet."""
    (x1, y1), (x2, y2) = _edge(before, following), _edge(following, before)
    dx, dy = x2 - x1, y2 - y1
    length = max((dx * dx + dy * dy) ** 0.5, 1.0)
    bend = 22.0
    cx, cy = (x1 + x2) / 2 - dy / length * bend, (y1 + y2) / 2 + dx / length * bend
    kind = ' class="undone"' if event is Event.UNDONE else ""
    label_x, label_y = (x1 + x2) / 4 + cx / 2, (y1 + y2) / 4 + cy / 2
    title = f"{before.value}, {event.value}: {following.value}"
    return [
        f'<path{kind} d="M{x1:.0f},{y1:.0f} Q{cx:.0f},{cy:.0f} {x2:.0f},{y2:.0f}"><title>{title}</title></path>',
        f'<text class="event" x="{label_x:.0f}" y="{label_y:.0f}">{event.value}</text>',
    ]


def _edge(box: State, towards: State) -> tuple[float, float]:
    """Where the straight line from the box's centre leaves its border."""
    (x, y), (tx, ty) = _PLACES[box], _PLACES[towards]
    dx, dy = tx - x, ty - y
    scale = min(
        _BOX_WIDTH / 2 / abs(dx) if dx else float("inf"), _BOX_HEIGHT / 2 / abs(dy) if dy else float("inf")
    )
    return x + dx * scale, y + dy * scale
