"""An operator's verb: an item's history ends, and the next cycle begins a new one, whatever is left of the old one.

It needs nothing of the retention volume: that may be damaged, empty, or another one. The targets stay as they are; what
is remembered of their content goes, so that the next session reads and compares them.
"""

from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace

from disks.errors import DiskInUse
from drcore.errors import HomewardError
from masttarget.config import DiskConfig
from masttarget.errors_retention import PointInUse, RetentionFailed
from masttarget.ports import TargetStore
from masttarget.retention import RetentionStore


def begin_anew(
    configs: Iterable[DiskConfig], item: bytes, retention: RetentionStore, store: TargetStore
) -> int:
    """The item has no points; answers its generation, which went up by one: agents of older ones are refused.

    Broken off, the same verb goes on. Errors: `DiskInUse`, `RetentionBusy` (HW-MT-045) while a session has a disk open,
    `PointInUse` (HW-MT-040) while somebody reads from a point, those of the journals.
    """
    journals = [(config, store.journal(config)) for config in configs]
    with ExitStack() as stack:
        for config, _ in journals:
            _keep_off(config, store, stack)
        for disk in retention.disks(item):
            segments = retention.segments(item, disk)
            stack.callback(segments.close)
            with suppress(RetentionFailed):  # what cannot be made durable any more is about to go
                segments.own()
        if point := retention.held(item):
            raise PointInUse(item=item.hex(), point=point)
        records = [(config, journal, journal.load()) for config, journal in journals]
        generation = 1 + max((record.generation for _, _, record in records if record is not None), default=0)
        for config, journal, record in records:
            if record is not None:
                # First of all, durably: nobody believes what was known of a target whose history is gone.
                journal.store(replace(record, generation=generation, closed=None))
                stack.callback(journal.close)
                journal.start_applied(config.disk.bytes)
        with retention.exclusive(item):
            retention.remove(item)
    return generation


def _keep_off(config: DiskConfig, store: TargetStore, stack: ExitStack) -> None:
    """Nobody else has the target open meanwhile. One that cannot be opened at all is nobody's."""
    try:
        stack.callback(store.open(config).close)
    except DiskInUse:
        raise
    except HomewardError:
        pass
