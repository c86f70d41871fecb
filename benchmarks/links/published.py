"""What is published of the links: docs/links.md between its two marks."""

import os
from pathlib import Path

from benchmarks.published import BEGIN, BUSY_LOAD, END, _table


def write(
    document: Path,
    missing: str | None,
    lines: list[list[str]],
    compression: list[list[str]],
    lanes: list[list[str]],
) -> None:
    """The document's part between the two marks is this run's tables, or why there are none."""
    pieces = [missing] if missing else []
    if os.getloadavg()[2] > BUSY_LOAD + (os.cpu_count() or 1):
        pieces.append(
            f"**Provisional**: other programs used the machine's {os.cpu_count()} cores (see the load of each minute, "
            "the measurement included); lines of 1 Gbit/s need it whole."
        )
    if lines:
        head = ("line", "congestion control", "lanes", "homeward Mbit/s", "iperf3 Mbit/s", "ratio", "load")
        pieces.append(_table(head, lines))
    if compression:
        head = ("line", "content", "auto s (MiB)", "always s (MiB)", "never s (MiB)", "auto / better", "load")
        pieces.append(_table(head, compression))
    if lanes:
        pieces.append(_table(("round trip ms", "lanes", "Mbit/s"), lanes))
    before, rest = document.read_text().split(BEGIN)
    _, after = rest.split(END)
    body = "\n\n".join(pieces)
    document.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}")
