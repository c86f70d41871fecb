"""Reading from a point, while replication goes on: its view, its proof, and its way into a new image."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from _native import digest
from disks.content import content_root
from disks.disk import Disk, Format
from disks.errors_vmdk import WrittenOtherwise
from disks.scan import data_runs
from drcore.buffers import buffer
from drcore.errors import HomewardError
from drcore.limits import MIB
from drcore.units import parts
from masttarget.ahead import ahead
from masttarget.config import DiskConfig
from masttarget.errors import UnknownDisk
from masttarget.errors_retention import DiskAmbiguous, PointChanged, PointUnknown
from masttarget.opening import FORMAT_SECTOR_BYTES, durable_place
from masttarget.points import Point
from masttarget.ports import TargetStore
from masttarget.retention import ItemRetention
from masttarget.rollback import OnBytes, root_of
from masttarget.standing import Standing, standing
from masttarget.undo import Identity
from masttarget.view import PointView

_PIECE_BYTES: Final = 1 * MIB
"""What an export reads and writes at once: it stays in a cache of the processor between the two."""


class ReadingStore(Protocol):
    """Where target disks are read, beside whoever writes them."""

    def look(self, disk: DiskConfig) -> Disk:
        """The target, open for reading without a lock."""
        ...

    def making(self, path: Path) -> AbstractContextManager[Path]:
        """A place where `path` is made; it has its name when that went well to its end, else nothing is left.

        Errors: `ExportExists` (HW-MT-060), `DiskInUse`, `OpenFailed`.
        """
        ...

    def create_at(self, path: Path, kind: str, size: int) -> Disk:
        """A new image."""
        ...

    def write_whole(
        self, path: Path, source: Disk, on_bytes: OnBytes, verify: Callable[[Disk], None]
    ) -> None:
        """A new image of the kind that is written whole reads as `source`; `verify` saw it before it had a name."""
        ...


@dataclass(frozen=True, slots=True)
class Proof:
    """What a disk of a point reads as. `known` is the root that was recorded, empty where none was."""

    disk: str
    root: str
    content_root: str
    known: str


def standings(
    item: ItemRetention, configs: tuple[DiskConfig, ...], store: TargetStore, *, whole: bool
) -> dict[str, Standing]:
    """What each disk's journal is worth, by disk UUID (hex); `whole`: every byte of it was read.

    Errors: `RetentionFailed` (HW-MT-037), those of the disks' own journals.
    """
    # Before the segments: what they are known to hold must not be more than what is there to be seen.
    durable = {config.disk.hex: durable_place(store.journal(config), config) for config in configs}
    with item.changing(), ExitStack() as stack:
        if (oldest := item.points.oldest) is not None:
            stack.enter_context(item.store.hold(item.item, oldest.id))
        found = {disk: _standing(item, disk, place, whole=False) for disk, place in durable.items()}
        held = stack.pop_all()
    with held:
        return {
            disk: _standing(item, disk, durable[disk], whole=True) if whole else one
            for disk, one in found.items()
        }


def _standing(item: ItemRetention, disk: str, durable: tuple[int, int], *, whole: bool) -> Standing:
    disk_id = bytes.fromhex(disk)
    return standing(item.store.segments(item.item, disk_id), item.item, disk_id, durable, whole=whole)


def unusable(point: Point, found: Mapping[str, Standing]) -> HomewardError | None:
    """Why the point cannot be gone back to; None where it can."""
    reasons = (found[one.disk].reason(point.sequence) for one in point.disks if one.disk in found)
    return next((reason for reason in reasons if reason is not None), None)


def choose_disk(configs: tuple[DiskConfig, ...], point: Point, disk: str) -> DiskConfig:
    """The disk that is meant, of those in the point. Errors: `UnknownDisk`, `DiskAmbiguous` (HW-MT-047)."""
    names = [one.disk for one in point.disks if not disk or one.disk == disk.replace("-", "").lower()]
    found = [config for config in configs if config.disk.hex in names]
    if not found:
        raise UnknownDisk(disk=disk or "any")
    if len(found) > 1:
        raise DiskAmbiguous(item=found[0].item.hex, disks=", ".join(names))
    return found[0]


@contextmanager
def viewing(
    item: ItemRetention, point: Point, config: DiskConfig, store: ReadingStore
) -> Iterator[PointView]:
    """The disk as it was; nobody gives the point up meanwhile. Errors: `PointUnknown` (HW-MT-035), those of both."""
    one = point.disk(config.disk.hex)
    if one is None:
        raise UnknownDisk(disk=config.disk.hex)
    with item.store.hold(item.item, point.id):
        with item.changing():
            if item.points.by_sequence(point.sequence) is None:
                raise PointUnknown(item=item.item.hex(), point=point.id)  # given up before it was held
        disk = store.look(config)
        try:
            segments = item.store.segments(item.item, config.disk.bytes)
            identity = Identity(config.item.bytes, config.disk.bytes, one.data_bytes)
            yield PointView(disk, segments, identity, point.sequence, live=True)
        finally:
            disk.close()


def prove(view: PointView, point: Point, disk: str, secret: bytes, on_bytes: OnBytes) -> Proof:
    """The disk reads as the point says. Errors: `PointChanged` (HW-MT-043)."""
    known = point.disk(disk)
    assert known is not None
    root = root_of(view, view.size, secret, on_bytes)
    if known.root and known.root != root:
        raise PointChanged(point=point.id, disk=disk, found_root=root, root=known.root)

    found = _content_root(view, view.size)
    if known.content_root and known.content_root != found:
        raise PointChanged(point=point.id, disk=disk, found_root=found, root=known.content_root)
    return Proof(disk, root, found, known.root)


def _content_root(disk: Disk, size: int) -> str:
    """The content root of the first `size` bytes, by reading them."""

    def content() -> Iterator[tuple[int, memoryview]]:
        piece = buffer(MIB)
        for start, end in data_runs(disk, size):
            for at in range(start, end, MIB):
                length = min(MIB, end - at)
                disk.read(at, piece[:length])
                yield at, piece[:length]

    return content_root(size, content(), lambda position: None)


def export_to(path: Path, kind: str, view: PointView, store: ReadingStore, on_bytes: OnBytes) -> int:
    """The new image `path` holds the point's disk, durably, or is not there; answers the bytes written.

    A format of whole sectors has zeroes behind an odd end. Errors: `ExportExists` (HW-MT-060), those of both disks.
    """
    with store.making(path) as place:
        if kind == Format.VMDK_STREAM_OPTIMIZED.value:
            written = 0

            def verify(image: Disk) -> None:
                nonlocal written
                written = image.allocated_bytes()
                roots = [_content_root(disk, view.size) for disk in (image, view)]
                if roots[0] != roots[1]:
                    source = f"recovery point {view.sequence}"
                    raise WrittenOtherwise(
                        path=str(path), source=source, found_root=roots[0], source_root=roots[1]
                    )

            store.write_whole(place, view, on_bytes, verify)
            return written
        whole = parts(view.size, FORMAT_SECTOR_BYTES) * FORMAT_SECTOR_BYTES
        size = view.size if kind == Format.RAW.value else whole
        image = store.create_at(place, kind, size)
        try:
            return export(view, image, on_bytes)
        finally:
            image.close()


def _pieces(view: PointView) -> Iterator[tuple[int, memoryview]]:
    """What the view may hold data in, ascending. The last two pieces that were given stay."""
    spare = [buffer(_PIECE_BYTES) for _ in range(3)]
    turn = 0
    for start, end in data_runs(view, view.size):
        for at in range(start, end, _PIECE_BYTES):
            piece = spare[turn % len(spare)][: min(_PIECE_BYTES, end - at)]
            view.read(at, piece)
            yield at, piece
            turn += 1


def export(view: PointView, image: Disk, on_bytes: OnBytes) -> int:
    """The image holds the point's disk, durably; answers the bytes written. Errors: those of both disks."""
    written = 0
    with closing(ahead(_pieces(view))) as pieces:
        for at, piece in pieces:
            if not digest.is_zero(piece):
                image.write(at, piece)
                written += len(piece)
            on_bytes(at + len(piece))
    image.flush()
    on_bytes(view.size)
    return written
