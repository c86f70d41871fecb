"""Going back, as the command line shows it: `sync --undo`, `sync --drop-undo`."""

import threading
from contextlib import ExitStack
from pathlib import Path

from homeward import show
from homeward.stopping import Interrupt
from masttarget.ports import WAITS, Log


def undo_sync(target: Path, told: str | None, state: Path, *, as_json: bool) -> None:
    """The target holds what it held before its last sync, and the answer was shown."""
    from agent.errors import Stopped
    from disks.disk import Format
    from drcore.clock import SystemClock
    from homeward.local import UNDO, Workplace
    from masttarget.adapters.files import LocalStore
    from masttarget.adapters.retention_files import RetentionFiles
    from masttarget.errors_retention import NothingToUndo, RetentionFull
    from masttarget.retention import Policy, Retention
    from masttarget.taking_back import take_back

    place = Workplace(target, state)
    config = place.known(Format(told) if told else None)  # and nobody else has it until `release`
    if config is None:
        raise NothingToUndo(path=str(target), journal=str(place.path))
    disk = config.disks[0]
    retention = Retention(
        RetentionFiles(place.path / UNDO), SystemClock(), Policy(config.retention_seconds), _telling(target)
    )

    def stop() -> None:
        # Whoever waits for room gives up; not in the handler itself, which may have interrupted that very wait.
        threading.Thread(target=retention.interrupt, name="stop", daemon=True).start()

    stopped = Interrupt(stop)

    def on_bytes(_: int) -> None:
        if stopped.asked:
            raise Stopped()

    try:
        with stopped:
            done = take_back(disk, retention.item(disk.item.bytes), LocalStore(place.path), on_bytes)
    except RetentionFull as error:
        if stopped.asked:
            raise Stopped() from error
        raise
    finally:
        place.release()
    if as_json:
        show.answer_json(
            {
                "blocks_changed": done.blocks_changed,
                "bytes_written": done.bytes_written,
                "removed": done.removed,
                "more": done.more,
            }
        )
    elif done.removed:
        show.answer(f"removed {target}, which that sync had created")
    else:
        show.answer(
            f"{target} holds what it held before its last sync: "
            f"{show.counted(done.blocks_changed, 'block')} of 64 KiB changed back, "
            f"{show.size(done.bytes_written)} written "
            "(of a block that differs in many sectors all of it; a sync sends and counts less, and no zero blocks)"
        )
        if done.more:
            show.answer(f"an earlier sync can be taken back too: homeward sync --undo {target}")


def _telling(target: Path) -> Log:
    """A log on stderr in which people find the words for a wait."""
    from homeward.logs import log_to_stderr

    log = log_to_stderr()

    def told(event: str, /, **facts: object) -> None:
        if event == WAITS:
            show.say(
                f"waiting: no room beside {target} to keep what is there now (HW-MT-036). Make room on that volume and "
                "this goes on by itself; or stop it with Ctrl-C, and the same command goes on later"
            )
        log(event, **facts)

    return told


def drop_undo(target: Path, told: str | None, state: Path, *, as_json: bool) -> None:
    """Nothing can be taken back any more, and the answer was shown. Errors: `DiskInUse` while a sync runs."""
    from disks.disk import Format
    from disks.errors import DiskInUse
    from drcore.errors import HomewardError
    from homeward.local import Workplace
    from masttarget.adapters.files import LocalStore
    from masttarget.errors_retention import NothingToUndo

    place = Workplace(target, state)
    with ExitStack() as stack:
        stack.callback(place.release)
        config = place.known(Format(told) if told else None)
        try:
            if config is not None:
                stack.callback(LocalStore(place.path).open(config.disks[0]).close)
        except DiskInUse:
            raise
        except HomewardError:
            pass  # a target that is gone or broken is nobody's: what was kept for it can go
        if not place.drop_undo():
            raise NothingToUndo(path=str(target), journal=str(place.path))
    if as_json:
        show.answer_json({"dropped": True})
    else:
        show.answer(f"the undo journal of {target} is gone")
