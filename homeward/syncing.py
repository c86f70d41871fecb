"""`sync`: one disk on this machine brought up to date with another."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from agent.config import Compression
from disks import catalogue
from disks.disk import Format
from homeward import show
from homeward.ending import DONE
from homeward.errors import NotConfirmed
from homeward.local import DEFAULT_STATE, LocalSync, SyncOrder, Workplace
from homeward.noticing import notice
from homeward.reporting import cpu_seconds, standing_of, summary
from homeward.stopping import Interrupt


def sync(
    source: Path,
    target: Path,
    *,
    create: str | None = None,
    source_format: str | None = None,
    target_format: str | None = None,
    bandwidth: int | None = None,
    compression: str = Compression.AUTO.value,
    allow_larger: bool = False,
    adopt: bool = False,
    lanes: int = 1,
    state_directory: Path = DEFAULT_STATE,
    as_json: bool = False,
) -> int:
    """The target holds what the source holds, and it is told what was done. Answers the exit code."""
    began = time.monotonic()
    if create and Format(create) is Format.VMDK_STREAM_OPTIMIZED and not os.path.lexists(target):
        _whole(source, source_format, target, as_json=as_json)
        return DONE
    order = SyncOrder(
        source=source.absolute(),
        target=target,
        create=create or "",
        source_format=Format(source_format) if source_format else None,
        target_format=Format(target_format) if target_format else None,
        bandwidth=bandwidth,
        compression=Compression(compression),
        allow_larger=allow_larger,
        adopt=adopt or _confirmed(source, source_format, target, target_format, state_directory),
        lanes=lanes,
    )
    local = LocalSync(order, state_directory, lambda error, wait: None)
    warned = False

    def standing() -> show.Standing:
        nonlocal warned
        if local.agent is not None and local.agent.progress.overwrites and not warned:
            warned = True
            show.say(f"{target}: what is overwritten is kept; homeward sync --undo {target} brings it back")
        return standing_of(local.agent)

    with Interrupt(local.stop):
        local.start()
        notice(source, target)
        with show.progress(standing):
            report = local.run()
    _tell(report, round(time.monotonic() - began, 3), as_json=as_json)
    return DONE


def _whole(source: Path, source_format: str | None, target: Path, *, as_json: bool) -> None:
    """`sync --create` of a format that is written from end to end, in this process."""
    from homeward.whole import WholeSync

    began = time.monotonic()
    whole = WholeSync(source, Format(source_format) if source_format else None, target)
    notice(source)

    def standing() -> show.Standing:
        return show.Standing(
            whole.bytes_done, whole.bytes_total, whole.bytes_done, "writing and reading back"
        )

    with Interrupt(whole.stop), show.progress(standing):
        report = whole.run()
    _tell(report, round(time.monotonic() - began, 3), as_json=as_json)


def _tell(report: Any, seconds: float, *, as_json: bool) -> None:
    cpu = round(cpu_seconds(), 3)
    disk = report.disks[0]
    if as_json:
        show.answer_json(
            {
                "virtual_size": disk.virtual_size,
                "blocks_sent": disk.blocks_sent,
                "sectors_sent": disk.sectors_sent,
                "blocks_referenced": disk.blocks_referenced,
                "sectors_referenced": disk.sectors_referenced,
                "bytes_sent": report.bytes_sent,
                "bytes_received": report.bytes_received,
                "bytes_resent": disk.bytes_resent,
                "resumed": report.resumed,
                "root": disk.root.hex(),
                "seconds": seconds,
                "cpu_seconds": cpu,
            }
        )
        return
    summary(report, seconds, cpu)


def _confirmed(source: Path, source_told: str | None, target: Path, told: str | None, state: Path) -> bool:
    """Whether the operator has confirmed the target; in a script files need no confirmation, devices always do."""
    if not target.exists() or Workplace(target, state).resumes:
        return False
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        return not target.is_block_device()
    import click  # here: a script never pays for it

    for label, path, kind in (("source", source, source_told), ("target", target, told)):
        disk = catalogue.open_source(path, Format(kind) if kind else None)
        show.identity(label, catalogue.identity(disk))
        disk.close()
    if not click.confirm(
        "Is this target the disk to be overwritten with the source?", default=False, err=True
    ):
        raise NotConfirmed(path=str(target))
    return True
