"""Run inside a namespace: tells ten times a second the time and how many bytes its end of the line has received."""

import sys
import time
from pathlib import Path
from typing import Final

INTERFACE: Final = "line:"
PAUSE_SECONDS: Final = 0.1


def main() -> None:
    """Goes on until it is ended."""
    while True:
        found = Path("/proc/net/dev").read_text().split(INTERFACE)[1].split()
        sys.stdout.write(f"{time.monotonic()} {found[0]}\n")
        sys.stdout.flush()
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
