"""Claim: on a shaped link a sync sends what the changed sectors take in LZ4 and a thousandth of the disk, no more."""

import json
from pathlib import Path
from typing import Any

import lz4.block

from benchmarks import images
from benchmarks.published import Report, Settings
from benchmarks.racing import HOMEWARD, Contender, command, race, same_bytes
from drcore.units import BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES

DIGESTS_SHARE = 0.001
"""Of the disk's bytes, for digests, headers and seals."""
CONTENT_RATIO_MAX = 1.05


def bench_wire_bytes(
    benchmark: Any, changes: images.Changes, targets: Path, report: Report, settings: Settings
) -> None:
    source, target = changes.after.path, targets / "target.img"
    images.copy(changes.before.path, target)
    content = _compressed(changes)
    allowed = CONTENT_RATIO_MAX * content + DIGESTS_SHARE * settings.image_bytes
    sent: list[int] = []

    def prepare() -> None:
        changes.undo(target)
        images.settle(source, target)

    def check(found: bytes) -> None:
        sent.append(json.loads(found)["bytes_sent"])
        assert sent[-1] <= allowed, f"{sent[-1]} bytes sent for {content} bytes of compressed content"
        same_bytes(source, target)

    ours = Contender(
        "homeward sync --bandwidth",
        "homeward sync --json --bandwidth 50M A B",
        command(HOMEWARD, "sync", "--json", "--bandwidth", "50M", source, target),
        check,
        prepare,
    )
    race(benchmark, settings.rounds, ours, [])
    report.fact(
        "bytes sent with `--bandwidth 50M`, divided by 1.05 times LZ4 of the changed sectors of each block plus 0.1 % "
        "of the disk",
        f"{max(sent) / allowed:.3f} ({max(sent):,} / {allowed:,.0f})",
        "1.00",
    )
    report.fact(
        "the same, divided by LZ4 of the changed sectors alone", f"{max(sent) / content:.3f}", "not promised"
    )


def _compressed(changes: images.Changes) -> int:
    """What the changed sectors of each changed block take with the lz4 package, or as they are where that is less."""
    total = 0
    with changes.after.path.open("rb") as file:
        for block, bits in changes.sectors.items():
            file.seek(block * BLOCK_BYTES)
            whole = file.read(BLOCK_BYTES)
            changed = b"".join(
                whole[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES]
                for sector in range(BLOCK_SECTORS)
                if bits >> sector & 1
            )
            total += min(len(changed), len(lz4.block.compress(changed, store_size=False)))
    return total
