"""The two verbs whose start is felt, read without click where the command line is a plain one.

click and what it brings take a third of the start of `compare`. What is not plain here - an option with a value of its
own, help, a mistake - is for click to read, with the same outcome; a test holds the two against each other.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from disks.disk import CREATED, Format

FORMATS: Final = tuple(kind.value for kind in Format)
CREATABLE: Final = tuple(kind.value for kind in (*CREATED, Format.VMDK_STREAM_OPTIMIZED))
COMPRESSIONS: Final = ("auto", "always", "never")
FORMAT_OPTIONS: Final = {"--source-format": FORMATS, "--target-format": FORMATS}
HEEDED: Final = ("HOMEWARD_STATE_DIRECTORY", "_HOMEWARD_COMPLETE")
"""Variables of the environment that click looks at."""

OPTIONS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "compare": {"--json": (), "--allow-larger": (), **FORMAT_OPTIONS},
    "sync": {
        "--json": (),
        "--allow-larger": (),
        "--adopt": (),
        "--create": CREATABLE,
        "--compression": COMPRESSIONS,
        **FORMAT_OPTIONS,
    },
}
"""For each verb its plain options, with the values that they take; a flag takes none."""


def understood(words: Sequence[str]) -> Callable[[], int] | None:
    """What does what the command line asks for, and answers the exit code; None where that is for click to read."""
    options = OPTIONS.get(words[0]) if words else None
    if options is None or any(name in os.environ for name in HEEDED):
        return None
    told = _read(words[1:], options)
    if told is None:
        return None
    paths, named = told
    if words[0] == "compare":
        from homeward.comparing import compare

        return lambda: compare(*paths, **named)
    from homeward.syncing import sync

    return lambda: sync(*paths, **named)


def _read(
    words: Sequence[str], options: dict[str, tuple[str, ...]]
) -> tuple[tuple[Path, Path], dict[str, Any]] | None:
    """The two paths and the options by the names of their parameters; None where anything is not plain."""
    paths: list[Path] = []
    named: dict[str, Any] = {}
    left = iter(words)
    for word in left:
        if not word.startswith("-") and word:
            paths.append(Path(word))
            continue
        values = options.get(word)
        if values is None:
            return None
        value = next(left, "") if values else True
        if values and value not in values:
            return None
        named["as_json" if word == "--json" else word[2:].replace("-", "_")] = value
    return ((paths[0], paths[1]), named) if len(paths) == 2 else None
