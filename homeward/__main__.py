"""The command `homeward`, as it is installed and as `python -m homeward`."""

import gc
import os
import signal
import sys

INTERRUPTED = 130
GARBAGE_THRESHOLD = 20_000
"""Objects between two searches for cycles: at Python's own 700 they take a sixth of the time of all imports."""


def main() -> None:
    """The command has run. Ctrl-C while it is still being imported ends it without a word: nothing was touched yet."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    # Not where the shell has it ignored, as for a command in the background.
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        from homeward.quick import understood

        command = understood(sys.argv[1:])
        if command is None:
            from homeward.cli import main as run
        else:
            from homeward.ending import carry_out

            def run() -> None:
                carry_out(command)

        if heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
