"""What people are told of a sync: where it stands, and what it did."""

import resource
from typing import Any

from drcore.units import BLOCK_BYTES
from homeward import show


def standing_of(agent: Any) -> show.Standing:
    """Where the agent's run stands; None where there is no agent yet."""
    if agent is None:
        return show.Standing(0, 0, 0, "starting")
    now = agent.progress
    if now.waits:
        return show.Standing(
            now.compared_bytes, now.total_bytes, now.bytes_sent, "waiting for room at the master target"
        )
    if now.compared_bytes < now.total_bytes:
        return show.Standing(now.compared_bytes, now.total_bytes, now.bytes_sent, "comparing and sending")
    sent, ordered = now.sent_blocks * BLOCK_BYTES, now.ordered_blocks * BLOCK_BYTES
    return show.Standing(sent, ordered, now.bytes_sent, "sending the rest")


def summary(report: Any, seconds: float, cpu: float) -> None:
    """What the run did, for people."""
    for disk in report.disks:
        again = " (a broken run went on)" if report.resumed else ""
        show.answer(f"done in {show.duration(seconds)}{again}: source and target hold the same")
        if len(report.disks) > 1:
            show.answer(f"disk      {disk.disk}, {show.size(disk.virtual_size)}")
        show.answer(
            f"sent      {show.counted(disk.blocks_sent, 'block')}, in "
            f"{'it' if disk.blocks_sent == 1 else 'them'} {show.counted(disk.sectors_sent, 'sector')}, "
            f"{show.size(disk.content_bytes)} of content"
        )
        if disk.bytes_resent:
            show.answer(f"again     {show.size(disk.bytes_resent)} that a broken run had sent already")
        show.answer(f"root      {disk.root.hex()}")
    total = sum(disk.virtual_size for disk in report.disks)
    show.answer(
        f"network   {show.size(report.bytes_sent)} out, {show.size(report.bytes_received)} in, "
        f"for {show.size(total)} of disk"
    )
    show.answer(f"CPU       {show.duration(cpu)}")


def cpu_seconds() -> float:
    """User and system time of this process and of those it has waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
