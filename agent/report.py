"""What one run did, and where it stands."""

from drcore.record import Changing, Record


class DiskReport(Record):
    """What was done for one disk; `disk` is its UUID, empty where it has none."""

    disk: str
    virtual_size: int
    blocks_sent: int
    sectors_sent: int
    content_bytes: int
    bytes_resent: int
    root: bytes
    target_bytes: int
    blocks_referenced: int = 0
    sectors_referenced: int = 0


class SyncReport(Record):
    """What one run did. Bytes are those on the data sockets."""

    disks: tuple[DiskReport, ...]
    bytes_sent: int
    bytes_received: int
    resumed: bool
    point: bytes
    lanes: int = 1
    """The largest number that worked at the same time."""
    app_consistent: bool = False
    """Whether the point was committed as app-consistent, not crash-consistent."""


class Progress(Changing):
    """Where the run stands; written by its threads, read by whoever shows it."""

    total_bytes: int = 0
    scanned_bytes: int = 0
    compared_bytes: int = 0
    ordered_blocks: int = 0
    sent_blocks: int = 0
    bytes_sent: int = 0
    waits: bool = False
    """The master target takes nothing: it waits for room to keep what is overwritten."""
    overwrites: bool = False
    """The master target took the session, for a target that was there before and that no broken run had begun."""
