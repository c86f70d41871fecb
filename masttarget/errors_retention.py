"""What can go wrong with the retention journal, its volume and its recovery points."""

from typing import Final

from drcore.errors import HomewardError, Retry

_WAY_OUT: Final = (
    "which points can still be used: homeward points list ITEM --check; where the next cycle is refused too: "
    "homeward points drop ITEM --all --yes begins a new history (after homeward sync: --drop-undo)"
)


class SegmentDamaged(HomewardError):
    """A segment of the retention journal holds something that homeward did not write so."""

    code = "HW-MT-030"
    what = "the retention journal {path} is damaged in segment {segment} at byte {offset}"
    found = "{reason}"
    expected = "records that follow one another, each with its checksum"
    remedy = f"look after the retention volume; {_WAY_OUT}"
    path: str
    segment: int
    offset: int
    reason: str


class SegmentMissing(HomewardError):
    """A segment of the retention journal is not there."""

    code = "HW-MT-031"
    what = "segment {segment} of the retention journal {path} is missing at byte {offset}"
    found = "no such file"
    expected = "every segment from {first} to {last}"
    remedy = f"put the file back, or mount the volume that has it; {_WAY_OUT}"
    path: str
    segment: int
    offset: int
    first: int
    last: int


class SegmentForeign(HomewardError):
    """A segment belongs to another disk."""

    code = "HW-MT-032"
    what = "segment {segment} of the retention journal {path} belongs to another disk (byte {offset})"
    found = "item {found_item}, disk {found_disk}"
    expected = "item {item}, disk {disk}"
    remedy = f"put the segment back where it belongs; {_WAY_OUT}"
    path: str
    segment: int
    offset: int
    found_item: str
    found_disk: str
    item: str
    disk: str


class ClockBackwards(HomewardError):
    """What follows is older than what stands before it."""

    code = "HW-MT-033"
    what = "time goes backwards in {path}, in segment {segment} at byte {offset}"
    found = "{found_time}"
    expected = "a time not before {expected_time}"
    remedy = f"check the machine's clock and who changed the journal; {_WAY_OUT}"
    path: str
    segment: int
    offset: int
    found_time: str
    expected_time: str


class PointsDamaged(HomewardError):
    """The list of recovery points cannot be read to its end."""

    code = "HW-MT-034"
    what = "the list of recovery points {path} is damaged at byte {offset}"
    found = "{reason}"
    expected = "lines that follow one another, each with its checksum"
    remedy = (
        "look after the retention volume; the next verb or cycle makes the list anew from the disks' journals, and "
        "homeward points list ITEM shows what is in it then"
    )
    path: str
    offset: int
    reason: str


class PointUnknown(HomewardError):
    """There is no such recovery point."""

    code = "HW-MT-035"
    what = "item {item} has no such recovery point"
    found = "{point}"
    expected = (
        "one that homeward points list shows, or latest, latest-processed, latest-app-consistent, a time"
    )
    remedy = "choose one of the points that homeward points list shows"
    item: str
    point: str


class RetentionFull(HomewardError):
    """The retention volume has no room for the undo records of this cycle."""

    code = "HW-MT-036"
    retry = Retry.TRANSIENT
    what = "the retention volume {path} is full"
    found = "{free} bytes free"
    expected = "{wanted} bytes for the undo records of the open cycle"
    remedy = (
        "make room on the volume, or give up the last point with homeward points drop ITEM --last --yes; "
        "the cycle goes on by itself"
    )
    path: str
    free: int
    wanted: int


class RetentionFailed(HomewardError):
    """The retention journal could not be read or written."""

    code = "HW-MT-037"
    what = "the retention journal {path} could not be used"
    found = "{reason}"
    expected = "a readable and writable directory on a sound volume"
    remedy = "look after the retention volume, then run the same command again"
    path: str
    reason: str


class RetentionRefused(HomewardError):
    """The retention volume does not meet the criteria."""

    code = "HW-MT-038"
    what = "{path} cannot be the retention volume"
    found = "{reason}"
    expected = "a volume of its own, not FAT, not empty, not locked, used for nothing else"
    remedy = (
        "add a disk to the master target, format it (ext4 or XFS), mount it at /mnt/retention and name it"
    )
    path: str
    reason: str


class NothingToUndo(HomewardError):
    """There is no undo journal for this target."""

    code = "HW-MT-039"
    what = "there is nothing to take back for {path}"
    found = "no undo journal"
    expected = "the undo journal of an earlier sync in {journal}"
    remedy = (
        "check the path; an undo journal is there until it is dropped with --drop-undo or the target changes"
    )
    path: str
    journal: str


class PointInUse(HomewardError):
    """A rollback, an export or a server reads from the point."""

    code = "HW-MT-040"
    what = "the recovery point {point} of item {item} is in use"
    found = "a rollback, an export or a server that reads from it, or from an older one"
    expected = "a point that nobody uses"
    remedy = "wait for its end, or stop it, then run the same command again"
    item: str
    point: str


class LastPoint(HomewardError):
    """The last recovery point goes only when somebody says so twice."""

    code = "HW-MT-041"
    what = "{point} is the last recovery point of item {item}"
    found = "no other point that could be gone back to"
    expected = "at least one point that stays"
    remedy = "give it up all the same with homeward points drop ITEM --last --yes, or leave it"
    item: str
    point: str


class TargetChangedOutside(HomewardError):
    """Somebody else wrote to the target since homeward closed it: its points lead nowhere."""

    code = "HW-MT-042"
    what = "the target {path} was changed by somebody else since its last clean close"
    found = "other file marks than those of the last clean close"
    expected = "a target that only homeward wrote to"
    remedy = "run the next cycle, which starts a new history; its older points cannot be used any more"
    path: str


class PointChanged(HomewardError):
    """What a recovery point reads as is not what it was."""

    code = "HW-MT-043"
    what = "recovery point {point} of disk {disk} does not hold what it held"
    found = "root {found_root}"
    expected = "root {root}"
    remedy = "use the next older or newer point instead of this one, and check the disks of the master target"
    point: str
    disk: str
    found_root: str
    root: str


class RetentionOff(HomewardError):
    """The master target keeps no recovery points."""

    code = "HW-MT-044"
    what = "the master target keeps no recovery points"
    found = "no retention in {path}"
    expected = 'retention = "/mnt/retention", or another volume for them'
    remedy = "name a retention volume in the settings of the master target"
    path: str


class RetentionBusy(HomewardError):
    """Another process writes this disk's retention journal."""

    code = "HW-MT-045"
    what = "the retention journal {path} is in use"
    found = "another process that writes it"
    expected = "one writer at a time"
    remedy = "wait for the other verb to end, or stop the master target, then run the same command again"
    path: str


class ServeFailed(HomewardError):
    """The point cannot be served at this address."""

    code = "HW-MT-046"
    what = "the point cannot be served at {address}"
    found = "{reason}"
    expected = "a free address of this machine"
    remedy = "choose another address with --listen, or remove the socket that a killed server has left there"
    address: str
    reason: str


class DiskAmbiguous(HomewardError):
    """The choice needs a word more."""

    code = "HW-MT-047"
    what = "it is not clear which disk is meant"
    found = "item {item} with the disks {disks}"
    expected = "one disk"
    remedy = "name it with --disk UUID"
    item: str
    disks: str


class SlotsTaken(HomewardError):
    """The master target has as many disks as it may have."""

    code = "HW-MT-048"
    what = "the master target has no slot left for {wanted} more disks"
    found = "{attached} of {most} disks in use"
    expected = "at most {most} disks of all machines together at any one time (R050)"
    remedy = "wait until a reprotect or failback is done, or use another master target"
    wanted: int
    attached: int
    most: int


class VerifiedDamaged(HomewardError):
    """The digests of what a target's medium was last found to hold are not what was written."""

    code = "HW-MT-056"
    what = "the file of verified digests {path} is damaged at byte {offset}"
    found = "{reason}"
    expected = "digests that make the content root of the last point"
    remedy = (
        "look after the retention volume; nothing is lost: the next point is proved by reading the target"
    )
    path: str
    offset: int
    reason: str


class ExportExists(HomewardError):
    """An export never writes over anything."""

    code = "HW-MT-060"
    what = "no recovery point can be exported to {path}"
    found = "something of that name is there already"
    expected = "a name that is free"
    remedy = (
        "choose another name with --to, or move that away; to bring a target disk itself back to the point: "
        "homeward points rollback"
    )
    path: str
