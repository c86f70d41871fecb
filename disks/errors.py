"""The errors of the disks: which file or device, which structure, where, and what to do about it."""

from drcore.errors import HomewardError


class ReadFailed(HomewardError):
    """The medium did not give the bytes."""

    code = "HW-DISKS-001"
    what = "{path} could not be read"
    found = "{reason} reading {length} bytes at offset {offset}"
    expected = "the bytes"
    remedy = "check the device or file system under it (dmesg, smartctl), then run the same command again"
    path: str
    offset: int
    length: int
    reason: str


class WriteFailed(HomewardError):
    """The medium did not take the bytes."""

    code = "HW-DISKS-002"
    what = "{path} could not be written"
    found = "{reason} writing {length} bytes at offset {offset}"
    expected = "the bytes to be taken"
    remedy = "check the device or file system under it (dmesg, smartctl), then run the same command again"
    path: str
    offset: int
    length: int
    reason: str


class NoSpace(HomewardError):
    """The file system or quota under an image is full; nothing that was flushed is lost."""

    code = "HW-DISKS-003"
    what = "there is no space left for {path}"
    found = "{reason} writing {length} bytes at offset {offset}"
    expected = "room on the file system that holds it"
    remedy = "free space or raise the quota there, then run the same command again"
    path: str
    offset: int
    length: int
    reason: str


class FlushFailed(HomewardError):
    """The medium lost writes that it had taken: the open disk answers no verb but close any more."""

    code = "HW-DISKS-004"
    what = "{path} did not confirm that its writes are on stable storage"
    found = "{reason}"
    expected = "a flush that succeeds"
    remedy = (
        "check the device or file system under it (dmesg), then run the same command again; it compares anew"
    )
    path: str
    reason: str


class OpenFailed(HomewardError):
    """The operating system refused to open or create it."""

    code = "HW-DISKS-005"
    what = "{path} could not be opened"
    found = "{reason}"
    expected = "a regular file or a block device that this user may open"
    remedy = "check the path, its permissions and whether the device is read-only"
    path: str
    reason: str


class FormatUnknown(HomewardError):
    """Neither told nor plain from magic number and suffix together."""

    code = "HW-DISKS-006"
    what = "the format of {path} is not certain"
    found = "{seen}"
    expected = "a suffix and a magic number that agree, or to be told the format"
    remedy = (
        "say what it is: --format (info), --source-format or --target-format (compare, sync), format = in a [[disk]] "
        "({choices})"
    )
    path: str
    seen: str
    family: str
    """The suffix that goes with the content; empty where it is no known container's."""
    choices: str


class FooterMissing(FormatUnknown):
    """A VHD whose end is not there: probably a copy that was cut short."""

    code = "HW-DISKS-017"
    what = "{path} begins as a VHD and does not end as one"
    found = "{seen}"
    expected = "the footer in its last 512 bytes"
    remedy = (
        "hold its size against the original's and fetch it again: it was probably cut, or is still being copied. "
        "Only if nothing but the footer is missing, name the format: --format (info), --source-format or "
        "--target-format (compare, sync) vhd-dynamic"
    )


class FormatContradicted(HomewardError):
    """A format that is not what it says."""

    code = "HW-DISKS-007"
    what = "{path} is not in the format {told}"
    found = "{seen}"
    expected = "{told}"
    remedy = (
        "name the right format (--format, --source-format, --target-format, format = in a [[disk]]), or leave it out "
        "where suffix and content agree"
    )
    path: str
    told: str
    seen: str


class FormatNotSupported(HomewardError):
    """Known, but not to be read or written as asked."""

    code = "HW-DISKS-008"
    what = "{path} is of a kind that cannot be used here"
    found = "{seen}"
    expected = "one of {choices}"
    remedy = "convert it (qemu-img convert) or choose another disk"
    path: str
    seen: str
    choices: str


class ImageDamaged(HomewardError):
    """A structure of an image contradicts itself, the file, or the specification."""

    code = "HW-DISKS-009"
    what = "the image {path} is damaged: {structure} at offset {offset}"
    found = "{seen}"
    expected = "{wanted}"
    remedy = "fetch the image again or repair it with the tools of its maker; nothing was written"
    path: str
    structure: str
    offset: int
    seen: str
    wanted: str


class DiskInUse(HomewardError):
    """Somebody else mounts, holds or locks it."""

    code = "HW-DISKS-010"
    what = "{path} is in use"
    found = "{holder}"
    expected = "a disk that nobody else {verb}"
    remedy = "unmount or stop what holds it, then run the same command again"
    path: str
    holder: str
    verb: str


class TargetExists(HomewardError):
    """Nothing is ever created over something that exists."""

    code = "HW-DISKS-011"
    what = "{path} cannot be created"
    found = "it exists already"
    expected = "a name that is free"
    remedy = "leave out --create to write into it, or choose another name"
    path: str


class SizeNotPossible(HomewardError):
    """The format cannot hold a disk of exactly this size."""

    code = "HW-DISKS-012"
    what = "a disk of this size cannot be created as {format}"
    found = "{size} bytes"
    expected = "{wanted}"
    remedy = "choose another format (--create raw takes any size)"
    format: str
    size: int
    wanted: str


class OutsideDisk(HomewardError):
    """A verb was asked for bytes that the disk has not got; nothing was touched."""

    code = "HW-DISKS-013"
    what = "{path} has no such range"
    found = "{length} bytes at offset {offset}"
    expected = "a range within {size} bytes"
    remedy = "report this with the command that led to it"
    path: str
    offset: int
    length: int
    size: int


class DiskReadOnly(HomewardError):
    """A disk opened as a source was asked to change; nothing was touched."""

    code = "HW-DISKS-014"
    what = "{path} was opened for reading only"
    found = "an attempt to write or zero"
    expected = "a disk that was opened as a target"
    remedy = "report this with the command that led to it"
    path: str


class ImageFull(HomewardError):
    """The format's offsets cannot name another place in the file."""

    code = "HW-DISKS-015"
    what = "the image {path} cannot grow any further"
    found = "{length} more bytes wanted at offset {offset}"
    expected = "offsets below {limit} bytes, which is what the format can express"
    remedy = "convert the image (qemu-img convert), which packs it, or choose another format"
    path: str
    offset: int
    length: int
    limit: int


class ParentUnusable(HomewardError):
    """An image that holds only what differs from its parent, and a parent that is not there or not the one."""

    code = "HW-DISKS-016"
    what = "the image {path} needs its parent {parent}, which cannot be used"
    found = "{seen}"
    expected = "{wanted}"
    remedy = (
        "put the right parent into the same directory, under the name that the image tells, and run it again"
    )
    path: str
    parent: str
    seen: str
    wanted: str
