"""What is said before the work about the names that the operator gave."""

import contextlib
from pathlib import Path

from disks import catalogue
from drcore.errors import HomewardError
from homeward import show


def notice(*paths: Path) -> None:
    """Whoever names a file that is raw by its name and begins as a container does is told so, and that it is raw."""
    for path in paths:
        with contextlib.suppress(HomewardError):  # what is wrong with the path is told by who opens it
            found = catalogue.disguised(path)
            if found is not None:
                show.say(f"notice: {found}")
