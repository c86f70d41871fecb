"""`python -m tests.system.generated FOLDER`: syncs a made-up disk of 16 TiB with 64 GiB of data and tells what it took.

Reads cost a copy of a template and a stamp, so that what is measured is homeward and not a medium.
"""

import hashlib
import json
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from agent.adapters.sent_file import SentFile
from agent.adapters.tcp import TcpConnect
from agent.sync import Sync, SyncDisk, SyncPorts
from disks.digestmap import DigestMap
from disks.disk import Disk, Extent, ExtentKind, Format
from drcore.clock import SystemClock
from drcore.secret import read_key_file
from drcore.units import BLOCK_BYTES, ByteCount, ByteOffset
from masttarget.adapters.files import LocalStore
from masttarget.config import DiskConfig
from masttarget.main import Master
from tests.system.roles import Pair, Site
from wireproto.handshake import DiskOffer

SIZE = 16 << 40
RUN, STRIDE, STALE = 16, 4096, 1000


class GeneratedDisk:
    """A disk whose content is made up as it is read: a template, each block stamped with its index.

    Blocks lie in runs of `run` blocks, one run in every `stride` blocks; every `stale`-th holds an older stamp until it
    is written. A write has to bring what the block should hold; only its index is remembered.
    """

    format = Format.RAW
    grain_size = None
    disk_uuid = None
    change_mark = None
    path = Path("/generated")
    files = ()
    _template = hashlib.shake_256(b"template").digest(BLOCK_BYTES)

    def __init__(self, size: int, run: int, stride: int, stale: int = 0) -> None:
        self._size = size
        self._run = run
        self._stride = stride
        self._stale = stale
        self.updated: set[int] = set()
        self._lock = threading.Lock()

    @property
    def size(self) -> ByteCount:
        return ByteCount(self._size)

    def _stamp(self, block: int) -> bytes:
        if self._stale and block % self._stale == 0 and block not in self.updated:
            return b"stale" + block.to_bytes(8, "little")
        return b"fresh" + block.to_bytes(8, "little")

    def _holds(self, block: int) -> bool:
        return block % self._stride < self._run

    def read(self, offset: int, into: memoryview) -> None:
        assert offset % BLOCK_BYTES == 0
        for at in range(0, len(into), BLOCK_BYTES):
            block = (offset + at) // BLOCK_BYTES
            length = min(BLOCK_BYTES, len(into) - at)
            if not self._holds(block):
                into[at : at + length] = bytes(length)
                continue
            into[at : at + length] = self._template[:length]
            stamp = self._stamp(block)
            into[at : at + len(stamp)] = stamp

    def write(self, offset: int, data: memoryview) -> None:
        for at in range(0, len(data), BLOCK_BYTES):
            block, start = divmod(offset + at, BLOCK_BYTES)
            piece = bytes(data[at : at + BLOCK_BYTES])
            stamp = b"fresh" + block.to_bytes(8, "little")
            assert start == 0
            assert piece == stamp + self._template[len(stamp) : len(piece)]
            with self._lock:
                self.updated.add(block)

    def zero(self, offset: int, length: int) -> None:
        raise AssertionError("nothing becomes zero here")

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        assert (offset, length) == (0, self._size)
        step, data = self._stride * BLOCK_BYTES, self._run * BLOCK_BYTES
        for at in range(0, self._size, step):
            yield Extent(ByteOffset(at), ByteCount(data), ExtentKind.DATA)
            yield Extent(ByteOffset(at + data), ByteCount(step - data), ExtentKind.ZERO)

    def flush(self) -> None:
        """There is nothing to keep."""

    def allocated_bytes(self) -> ByteCount:
        return ByteCount(self._size // self._stride * self._run)

    def close(self) -> None:
        """There is nothing to give back."""


class GeneratedStore(LocalStore):
    """A store that holds the one made-up target."""

    def __init__(self, scratch: Path, target: GeneratedDisk) -> None:
        super().__init__(scratch)
        self._target = target

    def exists(self, disk: DiskConfig) -> bool:
        return True

    def open(self, disk: DiskConfig) -> Disk:
        return self._target

    def identity(self, disk: Disk) -> dict[str, str]:
        return {"uuid": "none", "path": "generated", "size": str(disk.size)}

    def file_marks(self, disk: Disk) -> tuple[tuple[int, int, int], ...]:
        return ()

    def change_mark(self, disk: Disk) -> str:
        return ""


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def main(folder: Path) -> dict[str, object]:
    site = Site(folder, Pair(folder / "generated-source", folder / "generated.raw", disk=uuid.uuid4()))
    source = GeneratedDisk(SIZE, RUN, STRIDE)
    target = GeneratedDisk(SIZE, RUN, STRIDE, STALE)
    clock = SystemClock()
    master = Master(site.masttarget(), lambda event, /, **facts: None, GeneratedStore(folder, target))
    thread = threading.Thread(target=master.run, daemon=True)
    thread.start()
    began, before = time.monotonic(), resident("VmRSS")
    config = replace(site.agent(master.address[1]))
    ports = SyncPorts(
        TcpConnect("127.0.0.1", config.port), clock, lambda count: bytes(count), read_key_file(site.key)
    )
    digests = DigestMap(SIZE, folder)
    sent = SentFile(folder / "agent", "generated")
    disk = SyncDisk(
        DiskOffer(config.disks[0].disk.bytes, SIZE), "generated", source, digests, sent, lambda: "", ""
    )
    report = Sync(config, [disk], ports, b"p" * 16).run()
    seconds = time.monotonic() - began
    master.stop()
    thread.join(60)
    stale = sum(target._holds(block) for block in range(0, SIZE // BLOCK_BYTES, STALE))
    assert len(target.updated) == stale
    digests.close()
    sent.remove()
    return {
        "data_bytes": source.allocated_bytes(),
        "blocks_sent": report.disks[0].blocks_sent,
        "blocks_stale": stale,
        "resident_growth": resident("VmHWM") - before,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
