"""Every decoder of outside bytes: mutated and random input brings a value or a coded error, never anything else."""

import io
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from _native import pack, refer
from disks.disk import Format
from disks.layout import Malformed
from drcore.errors import HomewardError
from masttarget.journal import AppliedFrame, CycleRecord, decode_applied, encode_applied, encode_start
from masttarget.target import AppliedRun
from tests.campaigns.attack import SHARED, frame_of, opened_pair
from tests.campaigns.runner import Campaign, Round
from tests.fuzz import microsoft_images, vmware_images
from tests.fuzz import test_disks_hostile as disks
from tests.unit.test_wireproto_handshake import HELLO
from tests.unit.test_wireproto_messages import MESSAGES, plain
from wireproto import handshake
from wireproto.connection import Connection
from wireproto.keys import handshake_key, prove
from wireproto.messages import decode


def mutated(rng: random.Random, good: bytes) -> bytes:
    """Some bytes changed, cut, repeated or replaced by edge values."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 6))):
        at = rng.randrange(len(data) + 1) if data else 0
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                width = rng.choice((2, 4, 8))
                data[at : at + width] = rng.choice(
                    (0, 1, 2**15, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
                ).to_bytes(8, "little")[:width]
            case 2:
                del data[at : at + rng.randrange(40)]
            case 3:
                data[at:at] = data[: rng.randrange(60)]
            case _:
                data[at:at] = rng.randbytes(rng.randrange(20))
    return bytes(data)


def _simple(play: Callable[[random.Random], None]) -> Callable[[], object]:
    @contextmanager
    def part() -> Iterator[Round]:
        yield lambda rng, _: play(rng)

    return part


def _messages(rng: random.Random) -> None:
    with suppress(HomewardError):
        decode(memoryview(mutated(rng, plain(rng.choice(MESSAGES)))))


def _handshake(rng: random.Random) -> None:
    # The proof is made right, so that what it protects is looked at.
    key = handshake_key(SHARED)
    body = mutated(rng, handshake.encode_hello(HELLO, key)[:-32])
    with suppress(HomewardError):
        handshake.decode_hello(body + prove(key, b"hello", body), key)
    with suppress(HomewardError):
        handshake.decode_refusal(mutated(rng, b"\3\0abc" * 5))
    with suppress(HomewardError):
        handshake.decode_welcome(rng.randbytes(76), b"", key)


@contextmanager
def frames() -> Iterator[Round]:
    """Bytes in front of a connection, before and after the handshake."""
    agent, target = opened_pair(random.Random(3))
    good = frame_of(agent, 1, 300)

    def one(rng: random.Random, _: int) -> None:
        with suppress(HomewardError):
            Connection(is_agent=rng.random() < 0.5, shared=SHARED).receive(mutated(rng, good))
        with suppress(HomewardError):
            target.receive(mutated(rng, good))
        target._header, target._filled = None, 0

    yield one


@contextmanager
def entries() -> Iterator[Round]:
    """A data frame's entries."""
    rng = random.Random(4)
    span = (rng.randbytes(8192) + b"text " * 11469 + bytes(7))[:65536] * 4
    out = bytearray(1 << 20)
    sectors = b"\xff\xff\x0f\x00\xff\xff\x01\x80"
    _, end, _ = pack.pack(span, 8, 0b1111, sectors, bytes(64), out, 0, 1)
    good, secret = bytes(out[:end]), bytes(range(192))
    block, whole, digests = bytearray(65536), bytearray(65536 * 64), bytearray(16 * 64)

    def one(rng: random.Random, _: int) -> None:
        hostile = mutated(rng, good)
        position = 0
        with suppress(pack.Malformed, pack.Mismatch):
            while position < len(hostile):
                _, bits, _, _, following = pack.entry(hostile, position)
                if bits == 0xFFFF:
                    pack.unpack(hostile, position, 12, 65536, secret, whole, digests)
                else:
                    pack.unpack_patch(hostile, position, 12, 65536, secret, block)
                position = following

    yield one


@contextmanager
def references() -> Iterator[Round]:
    """The entries of a frame of references, resolved by an index of some blocks."""
    rng = random.Random(5)
    secret, disk = bytes(range(192)), rng.randbytes(65536 * 12)
    out = bytearray(1 << 14)
    sectors = b"\xff\xff\x0f\x00\x01\x80\x00\x00"
    _, end, _ = refer.pack(disk[4096 : 4096 + 65536 * 4], 8, 0b111, sectors, bytes(64), secret, out, 0)
    good = bytes(out[:end])
    index = refer.Index(secret, 12, 1024, 2)
    index.learn(disk, 0, False)
    old, fresh, digests = bytes(65536 * 64), bytearray(65536 * 64), bytearray(16 * 64)

    def one(rng: random.Random, _: int) -> None:
        hostile = mutated(rng, good)
        position = least = 0
        with suppress(refer.Malformed):
            while position < len(hostile):
                position, least, blocks, reads = index.plan(hostile, position, least)
                assert all(first + count <= 12 for _, first, count in blocks)
                for place, at, count in reads:
                    inside = place + count <= (refer.SAVED + 32 if place >= refer.SAVED else 192)
                    assert inside
                    assert at + count <= 1024
                index.prove(old, fresh, digests)
                index.displace_batch(old)

    yield one


def _journal(rng: random.Random) -> None:
    disk = b"d" * 16
    frame = AppliedFrame(1, 1, 5, (AppliedRun(3, 2, bytes(32)), AppliedRun(9, 7, b"")))
    good = encode_start(disk) + encode_applied(frame) * 3
    with suppress(ValueError):
        list(decode_applied(io.BytesIO(mutated(rng, good)).read, disk))
    record = CycleRecord("i" * 32, "d" * 32, 1, 2, 3, True, {"uuid": "u"}).encode()
    with suppress(ValueError):
        CycleRecord.decode(mutated(rng, record))


@contextmanager
def images() -> Iterator[Round]:
    """Disk images of every format, opened and used as a user would."""
    with tempfile.TemporaryDirectory() as name:
        good = {}
        for kind in list(disks.FORMATS)[:3]:
            made = disks.image(Path(name), kind)
            good[kind] = made.read_bytes()
            made.unlink()

        def one(rng: random.Random, _: int) -> None:
            kind = rng.choice(list(good))
            raw = bytearray(good[kind])
            hot = [at for at in (*range(1700), *range(len(raw) - 512, len(raw))) if raw[at]]
            disks.mutate(raw, rng, hot)
            if raw and kind in (Format.VHD_FIXED, Format.VHD_DYNAMIC) and rng.random() < 0.8:
                disks.seal(raw)
            path = Path(name) / f"hostile.{disks.FORMATS[kind]}"
            path.write_bytes(raw)
            disks.use(path, kind)

        yield one


def _layouts(rng: random.Random) -> None:
    """The pure decoders of VMware's formats and qcow2: a value, or `Malformed`."""
    for good, decoder in vmware_images.DECODERS:
        with suppress(Malformed):
            decoder(mutated(rng, good))


@contextmanager
def vmware() -> Iterator[Round]:
    """VMware's formats and qcow2, with their extents, parents and backing files; one file of each is mutated."""
    with vmware_images.victims() as good, tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def one(rng: random.Random, _: int) -> None:
            victim = good[rng.choice(vmware_images.NAMES)]
            vmware_images.use(vmware_images.damage(victim, folder, rng), victim.kind)
            for path in folder.iterdir():
                path.unlink()

        yield one


@contextmanager
def microsoft() -> Iterator[Round]:
    """VHD and VHDX, with a parent and with a log that waits to be replayed; one file of each is mutated."""
    with microsoft_images.victims() as good, tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        names = sorted(good)

        def one(rng: random.Random, _: int) -> None:
            victim = good[rng.choice(names)]
            microsoft_images.use(microsoft_images.damage(victim, folder, rng), victim.kind)
            for path in folder.iterdir():
                path.unlink()

        yield one


CAMPAIGN = Campaign(
    "fuzz",
    {
        "messages": _simple(_messages),
        "handshake": _simple(_handshake),
        "frames": frames,
        "entries": entries,
        "references": references,
        "journal": _simple(_journal),
        "images": images,
        "layouts": _simple(_layouts),
        "vmware": vmware,
        "microsoft": microsoft,
    },
)
