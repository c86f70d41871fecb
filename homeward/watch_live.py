"""The live table of a job on a terminal: every step with its tick, its time, its bytes, rate and time left."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from homeward import show
from homeward.watch import BAR_CELLS, FRAMES_A_SECOND, Speed, current, name_of, seconds_of, step_words

STYLES: Final = {"waiting": "dim", "running": "cyan", "undoing": "yellow", "done": "green", "failed": "red"}


class LiveView:
    """See `homeward.watch.View`."""

    def __init__(self, name: str, live: Live, console: Console) -> None:
        self._name = name
        self._live = live
        self._console = console
        self._speed = Speed()
        self._spinner = Spinner("dots")

    def show(self, job: dict[str, Any]) -> None:
        """See `View`."""
        self._live.update(self._render(job), refresh=True)

    def say(self, text: str) -> None:
        """See `View`."""
        self._console.print(Text(text, style="yellow"))

    def _render(self, job: dict[str, Any]) -> RenderableType:
        style = STYLES.get(job["status"], "bold red")
        head = Text.assemble(
            (f"{job['verb']} of {self._name}: ", "bold"),
            (job["status"], f"bold {style}"),
        )
        table = Table.grid(padding=(0, 1))
        for _ in range(3):
            table.add_column(no_wrap=True)
        running = current(job)
        begun = {step["name"] for step in job["steps"] if step["phase"] == "do"}
        for step in job["steps"]:
            table.add_row(self._mark(step), self._name_of(step), self._words(step, step is running))
        if job["status"] in ("waiting", "running"):
            for name in job["planned"]:
                if name not in begun:
                    table.add_row(Text("·", style="dim"), Text(name, style="dim"), Text(""))
        return Group(head, table)

    def _mark(self, step: dict[str, Any]) -> RenderableType:
        if step["failure"]:
            return Text("✗", style="red")
        if step["ended"]:
            return Text("✓", style="green")
        return self._spinner

    def _name_of(self, step: dict[str, Any]) -> Text:
        style = "red" if step["failure"] else "yellow" if step["phase"] == "undo" else ""
        return Text(name_of(step), style=style)

    def _words(self, step: dict[str, Any], runs: bool) -> RenderableType:
        if not runs:
            return Text(step_words(step), style="red" if step["failure"] else "")
        rate, left = self._speed.add(time.monotonic(), step)
        passed = show.duration(max(time.time() - seconds_of(step["started"]), 0.0))
        if not step["total"]:
            return Text(f"{passed}, {step['label']}" if step["label"] else passed, style="dim")
        eta = f"ETA {show.duration(left)}" if left is not None else "ETA unknown"
        line = Table.grid(padding=(0, 1))
        share = 100 * step["done"] / step["total"]
        line.add_row(
            ProgressBar(total=step["total"], completed=step["done"], width=BAR_CELLS),
            Text(f"{share:3.0f} %"),
            Text(f"{show.size(step['bytes'])}  {show.size(rate)}/s  {eta}"),
            Text(f"{passed}, {step['label']}", style="dim"),
        )
        return line


@contextmanager
def live(name: str) -> Iterator[LiveView]:
    """A live view on stderr; its last state stays on the screen."""
    console = Console(stderr=True)
    with Live(console=console, refresh_per_second=FRAMES_A_SECOND, transient=False) as shown:
        yield LiveView(name, shown, console)
