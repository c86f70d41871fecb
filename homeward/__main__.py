"""The command `homeward`, as it is installed and as `python -m homeward`."""

import os
import signal
import sys

INTERRUPTED = 130


def main() -> None:
    """The command has run. Ctrl-C while it is still being imported ends it without a word: nothing was touched yet."""
    # Not where the shell has it ignored, as for a command in the background.
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        from homeward.cli import main as command

        if heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
