"""What can go wrong with VMware's formats and qcow2, beside what every disk shares (`errors.py`)."""

from disks.errors import FormatUnknown
from drcore.errors import HomewardError


class NotWritableInPlace(HomewardError):
    """A format, or a chain of images, that is read and never changed; nothing was touched."""

    code = "HW-DISKS-050"
    what = "{path} cannot be written in place"
    found = "{seen}"
    expected = "an image that is written in place, such as raw, a VHD or an ordinary VMDK"
    remedy = "sync into a new file (--create FORMAT under a free name) and use that; {path} stays as it is"
    path: str
    seen: str


class ExtentNamed(FormatUnknown):
    """A part of a disk was named instead of the disk."""

    code = "HW-DISKS-051"
    what = "{path} is one part of a disk, not the disk"
    found = "{seen}"
    expected = "the disk's descriptor, {descriptor}"
    remedy = (
        "name {descriptor} instead; only to use this part by itself as plain bytes tell the format raw: --format "
        "(info), --source-format or --target-format (compare, sync)"
    )
    descriptor: str


class ExtentRefused(HomewardError):
    """A descriptor names what may not be opened on its word."""

    code = "HW-DISKS-052"
    what = "the descriptor {path} names a file that is not opened"
    found = "{name}: {reason}"
    expected = "a plain file in the descriptor's own directory"
    remedy = (
        "put the file beside the descriptor and its bare name into the descriptor; to use a device (a raw device "
        "mapping), name the device itself"
    )
    path: str
    name: str
    reason: str


class FeatureNotSupported(HomewardError):
    """An image that can only be read by understanding something that is not understood here."""

    code = "HW-DISKS-053"
    what = "{path} cannot be read here"
    found = "{seen}"
    expected = "{wanted}"
    remedy = "{advice}"
    path: str
    seen: str
    wanted: str
    advice: str


class WrittenWholeOnly(HomewardError):
    """A format that comes into being by writing it from end to end; nothing was created."""

    code = "HW-DISKS-054"
    what = "{path} cannot be created as an empty {format} to be filled later"
    found = "{format}, whose grains are compressed one behind the other"
    expected = "a format that is written in place"
    remedy = "use homeward sync SOURCE {path} --create {format} on one machine, which writes it whole"
    path: str
    format: str


class RawLooksLikeContainer(HomewardError):
    """A notice, not a failure: a file that is raw by its name begins as a container does."""

    code = "HW-DISKS-055"
    what = "{path} is used as raw, as its name says"
    found = "{seen} in its first bytes"
    expected = "a guest's own bytes there"
    remedy = "nothing, if a guest wrote that; if the file is such an image, rename it to end in {suffix}"
    path: str
    seen: str
    suffix: str


class WrittenOtherwise(HomewardError):
    """What was written does not read back as the source; the new file was removed."""

    code = "HW-DISKS-056"
    what = "{path} does not read back as {source}"
    found = "root {found_root}"
    expected = "root {source_root}"
    remedy = (
        "see that nothing writes to the source, check the medium of the target (dmesg, smartctl), and run the same "
        "command again"
    )
    path: str
    source: str
    found_root: str
    source_root: str
