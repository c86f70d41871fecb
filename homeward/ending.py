"""How a command begins and ends: descriptors that nobody else gets, errors in one line, exit codes."""

import os
import sys
from collections.abc import Callable
from io import FileIO, TextIOWrapper
from typing import Final, NoReturn

from agent.errors import Stopped
from drcore.errors import HomewardError, coded
from homeward import show
from homeward.stopping import leave

DONE: Final = 0
NO: Final = 1
ERROR: Final = 2
INTERRUPTED: Final = 130


def carry_out(command: Callable[[], int], debug: Callable[[], bool] = lambda: False) -> NoReturn:
    """The command has run, and the process ends: with what it answers, 2 for a coded error, 130 when interrupted.

    `debug` says at the end whether a mistake of our own is shown with its traceback.
    """
    _standard_descriptors()
    try:
        code = command()
        show.finish()
    except Stopped as error:
        _fail(error, INTERRUPTED)
    except HomewardError as error:
        _fail(error, ERROR)
    except KeyboardInterrupt:
        _fail(Stopped(), INTERRUPTED)
    except BrokenPipeError:
        sys.exit(ERROR)
    except Exception as error:
        if debug():
            import traceback

            traceback.print_exc()
        _fail(coded(error), ERROR)
    leave(code)


def _standard_descriptors() -> None:
    """Descriptors 0 to 2 are open: no disk may ever be opened as one of them and take somebody's messages."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, TextIOWrapper(FileIO(number, "w", closefd=False)))


def _fail(error: HomewardError, code: int) -> NoReturn:
    if "--json" in sys.argv[1:]:
        show.answer_json(error.as_json())
    show.say(str(error))
    sys.exit(code)
