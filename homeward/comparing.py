"""`compare`: what differs between two disks, for people and for scripts."""

import time
from pathlib import Path

from agent import measure
from agent.errors import Stopped
from disks import catalogue
from disks.disk import Format
from homeward import show
from homeward.ending import DONE, NO
from homeward.noticing import notice
from homeward.stopping import Interrupt


def compare(
    source: Path,
    target: Path,
    *,
    source_format: str | None = None,
    target_format: str | None = None,
    allow_larger: bool = False,
    as_json: bool = False,
) -> int:
    """Both disks are compared and told of. Answers the exit code: 0 equal, 1 different."""
    began = time.monotonic()
    stopped = Interrupt()
    notice(source, target)
    first = catalogue.open_source(source, Format(source_format) if source_format else None)
    second = catalogue.open_source(target, Format(target_format) if target_format else None)
    measure.check_sizes(first, second, str(target), allow_larger=allow_larger)
    found = measure.Measurement()

    def standing() -> show.Standing:
        return show.Standing(found.bytes_done, found.virtual_size, found.bytes_done, "comparing")

    with stopped, show.progress(standing):
        measure.measure(first, second, found, lambda: stopped.asked)
    if stopped.asked:
        raise Stopped()
    first.close()
    second.close()
    seconds = round(time.monotonic() - began, 3)
    code = NO if found.blocks_changed else DONE
    if as_json:
        show.answer_json(
            {
                "virtual_size": found.virtual_size,
                "block_size": 65536,
                "blocks_total": found.blocks_total,
                "blocks_changed": found.blocks_changed,
                "sectors_changed": found.sectors_changed,
                "bytes_changed": found.bytes_changed,
                "bytes_zero": found.bytes_zero,
                "bytes_to_send": found.bytes_to_send,
                "bytes_to_send_is": "exact" if found.exact else "sampled",
                "seconds": seconds,
            }
        )
        return code
    if not found.blocks_changed:
        show.answer(f"equal: {show.size(found.virtual_size)} compared in {show.duration(seconds)}")
        return code
    about = "" if found.exact else "about "
    show.answer(
        f"different: {show.count(found.blocks_changed)} of {show.count(found.blocks_total)} blocks (64 KiB), "
        f"in them {show.counted(found.sectors_changed, 'sector')} (4 KiB), {show.size(found.bytes_changed)}"
    )
    show.answer(f"of those bytes {show.size(found.bytes_zero)} become zero")
    show.answer(f"a sync would send {about}{show.size(found.bytes_to_send)} of content, compressed")
    show.answer(f"compared {show.size(found.virtual_size)} in {show.duration(seconds)}")
    return code
