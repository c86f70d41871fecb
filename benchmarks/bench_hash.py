"""Claim: a disk is read and digested block by block faster than xxhsum hashes the file."""

import sys
from typing import Any

from benchmarks import images
from benchmarks.published import Report, Settings
from benchmarks.racing import Contender, command, race

SCAN = """
import sys
from pathlib import Path
from disks import catalogue
from disks.digestmap import DigestMap
from disks.scan import scan
disk = catalogue.open_source(sys.argv[1])
digests = DigestMap(disk.size, Path("/tmp"))
for _ in scan(disk, digests, bytes(range(192)), lambda _: None):
    pass
print(digests.root().hex())
"""


def bench_hash_image(benchmark: Any, changes: images.Changes, report: Report, settings: Settings) -> None:
    source = changes.before.path
    images.settle(source)
    told: set[bytes] = set()

    def check(found: bytes) -> None:
        told.add(found)
        assert len(told) == 1, "the same disk has one root"

    def check_sum(found: bytes) -> None:
        assert len(found.split()) >= 2

    ours = Contender(
        "homeward's scan",
        "python: disks.scan of A, one thread",
        command(sys.executable, "-c", SCAN, source),
        check,
    )
    lines = {
        "xxhsum": ("xxhsum", "-q", "-H2"),
        "b3sum": ("b3sum",),
    }
    if not settings.quick:
        lines["sha256sum"] = ("sha256sum",)
    peers = [
        Contender(name, f"{' '.join(words)} A", command(*words, source), check_sum)
        for name, words in lines.items()
    ]
    race(benchmark, settings.rounds, ours, peers)
    report.command("hash one image", ours, *peers)
    report.bars("hash", "Hash one image", ours, *peers)
