"""What the master target needs from outside."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:  # whoever only logs, or starts the role, needs none of it
    from disks.digestmap import DigestMap
    from disks.disk import Disk, Format
    from masttarget.config import DiskConfig
    from masttarget.elsewhere import Rooms
    from masttarget.journal import Journal


class TargetStore(Protocol):
    """Where target disks and their journals are."""

    def exists(self, disk: "DiskConfig") -> bool:
        """Whether there is something at the target's path."""
        ...

    def open(self, disk: "DiskConfig") -> "Disk":
        """The existing target, opened for writing and locked. Errors: those of `disks.open_target`; HW-MT-018."""
        ...

    def create(self, disk: "DiskConfig", size: int) -> "Disk":
        """A new target of `size` bytes in the configured format. Errors: those of `disks.create`."""
        ...

    def remove(self, disk: "DiskConfig", kind: "Format") -> None:
        """The files of the target, which homeward created, are gone, and no other. Errors: `JournalFailed`."""
        ...

    def identity(self, disk: "Disk") -> dict[str, str]:
        """What tells this disk from others, for the identity record and for people."""
        ...

    def file_marks(self, disk: "Disk") -> tuple[tuple[int, int, int], ...]:
        """(inode, size, modification time in ns) of each file of a disk, open or closed; empty for a device."""
        ...

    def change_mark(self, disk: "Disk") -> str:
        """What changes whenever somebody writes: the format's own mark; of a device the kernel's count of writes,
        behind what says since when it counts. Empty where there is no such thing."""
        ...

    def forget(self, disk: "Disk") -> None:
        """What was written to the disk is durable, and reads come from its medium. Errors: `TargetFailed`."""
        ...

    def journal(self, disk: "DiskConfig") -> "Journal":
        """The disk's journal."""
        ...

    def rooms(self, disk: "DiskConfig") -> "Rooms":
        """Where old content of the disk can be saved for this cycle; none where there is no space."""
        ...

    def new_map(self, disk: "DiskConfig", size: int) -> "DigestMap":
        """An empty digest map for `size` bytes."""
        ...


WAITS: Final = "retention volume full: the cycle waits"
"""An event that people have to hear of: nothing moves until `GOES_ON`."""
GOES_ON: Final = "retention volume has room again: the cycle goes on"


class Log(Protocol):
    """Where events go."""

    def __call__(self, event: str, /, **facts: object) -> None:
        """The event is told, with its facts; never block contents or keys."""
        ...


RandomBytes = Callable[[int], bytes]
"""So many bytes that nobody can guess."""
