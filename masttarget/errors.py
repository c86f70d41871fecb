"""What can go wrong at the master target."""

from drcore.errors import HomewardError, Retry


class UnknownItem(HomewardError):
    """The item is not configured here."""

    code = "HW-MT-001"
    what = "the master target has no such item"
    found = "item {item}"
    expected = "an item of the master target's configuration"
    remedy = "give both ends the same item UUID"
    item: str


class UnknownDisk(HomewardError):
    """The disk is not configured here for this item."""

    code = "HW-MT-002"
    what = "the master target has no such disk for this item"
    found = "disk {disk}"
    expected = "a disk of the item in the master target's configuration"
    remedy = "add a [[disk]] with this UUID and the target's path to the master target's configuration"
    disk: str


class TargetTooSmall(HomewardError):
    """The target cannot hold the source."""

    code = "HW-MT-003"
    what = "the target {path} is smaller than the source"
    found = "{target_bytes} bytes"
    expected = "{source_bytes} bytes"
    remedy = "choose a target of the source's size, or let homeward create one with --create"
    path: str
    target_bytes: int
    source_bytes: int


class TargetLarger(HomewardError):
    """The target is larger than the source, and nobody allowed that."""

    code = "HW-MT-004"
    what = "the target {path} is larger than the source"
    found = "{target_bytes} bytes"
    expected = "{source_bytes} bytes"
    remedy = "check that it is the right disk; if it is, pass --allow-larger (what lies beyond is left alone)"
    path: str
    target_bytes: int
    source_bytes: int


class TargetMissing(HomewardError):
    """There is no target and no format to create one in."""

    code = "HW-MT-005"
    what = "the target {path} does not exist"
    found = "nothing at that path"
    expected = "a disk, or the order to create one"
    remedy = "check the path, or pass --create FORMAT (raw, vmdk-monolithicSparse, …)"
    path: str


class NotAdopted(HomewardError):
    """The target has no identity record yet and nobody confirmed that it is the right disk."""

    code = "HW-MT-006"
    what = "the target {path} was not adopted yet"
    found = "{identity}"
    expected = "a confirmation that this is the disk to be overwritten"
    remedy = (
        "compare what was found with the disk you mean; if it is that one, confirm it: --adopt where it was homeward "
        "sync, else adopt = true in the [[disk]] of the master target's settings, and restart what reads them"
    )
    path: str
    identity: str


class OtherTarget(HomewardError):
    """The disk at the target's path is not the one that was adopted."""

    code = "HW-MT-007"
    what = "the target {path} is not the disk that was adopted"
    found = "{found_identity}"
    expected = "{adopted_identity}"
    remedy = "attach the right disk; to start anew with this one, remove {journal} and adopt it"
    path: str
    found_identity: str
    adopted_identity: str
    journal: str


class Fenced(HomewardError):
    """A newer session of the item has begun, or its generation was raised."""

    code = "HW-MT-008"
    what = "this session was fenced off"
    found = "session {session} of generation {generation}"
    expected = "session {current_session} of generation {current_generation}"
    remedy = (
        "set generation = {current_generation} in this agent's settings and start it, if its generation is the older "
        "one (a rollback, a failover or masttarget adopt raised it) and it is the one to go on; else another agent "
        "has taken over, and only one may send for an item: stop one of the two"
    )
    session: int
    generation: int
    current_session: int
    current_generation: int


class Diverged(HomewardError):
    """Both ends did everything and still do not hold the same."""

    code = "HW-MT-009"
    retry = Retry.RESYNC
    what = "source and target of disk {disk} do not agree"
    found = "root {target_root}, {target_frames} frames, {target_bytes} bytes"
    expected = "root {source_root}, {source_frames} frames, {source_bytes} bytes"
    remedy = "run the same command again: it compares from the start; if it happens again, a disk lies"
    disk: str
    source_root: str
    target_root: str
    source_frames: int
    target_frames: int
    source_bytes: int
    target_bytes: int


class BlockRefused(HomewardError):
    """A whole block came whose content does not have the digest that was sealed with it."""

    code = "HW-MT-010"
    what = "a block arrived that is not what its digest says"
    found = "other content for block {block}"
    expected = "content that has the sealed digest"
    remedy = "run the same command again; if it happens again, check the memory of both machines"
    block: int


class DataMalformed(HomewardError):
    """A data frame's entries make no sense."""

    code = "HW-MT-011"
    what = "a data frame is malformed"
    found = "{reason}"
    expected = "entries as docs/protocol.md lays them out"
    remedy = "install the same release of homeward on both machines; if they are, report this as a defect"
    reason: str


class JournalDamaged(HomewardError):
    """The journal directory holds something that homeward did not write so."""

    code = "HW-MT-012"
    what = "the journal {path} is damaged"
    found = "{reason}"
    expected = "what the last run left there"
    remedy = (
        "remove the directory and run the same command again: it compares from the start, nothing is lost"
    )
    path: str
    reason: str


class JournalFailed(HomewardError):
    """The journal could not be written."""

    code = "HW-MT-013"
    what = "the journal {path} could not be written"
    found = "{reason}"
    expected = "a writable directory with free space"
    remedy = "make room or correct the permissions, then run the same command again"
    path: str
    reason: str


class ConfigRefused(HomewardError):
    """The configuration cannot be used."""

    code = "HW-MT-014"
    what = "the configuration {path} cannot be used"
    found = "{reason}"
    expected = "the keys of docs/configuration.md"
    remedy = "correct the file"
    path: str
    reason: str


class ListenFailed(HomewardError):
    """The address cannot be listened on."""

    code = "HW-MT-015"
    what = "the master target cannot listen on {address}"
    found = "{reason}"
    expected = "a free address of this machine"
    remedy = "choose another address in listen, or stop what uses this one"
    address: str
    reason: str


class Stopping(HomewardError):
    """The master target is being stopped."""

    code = "HW-MT-016"
    retry = Retry.RECONNECT
    what = "the master target is being stopped"
    found = "a stop that was asked for"
    expected = "a master target that stays"
    remedy = "start it again and run the same command again: it goes on where it stopped"


class TargetFailed(HomewardError):
    """The target disk failed in this run; nothing more is written to it."""

    code = "HW-MT-017"
    what = "the target {path} failed and takes no more writes"
    found = "{reason}"
    expected = "a disk that takes every write and flush"
    remedy = "look after the disk, then restart the master target and run the same command again"
    path: str
    reason: str


class OtherFormat(HomewardError):
    """The target exists in another format than the one to create it in."""

    code = "HW-MT-018"
    what = "the target {path} exists in another format"
    found = "{found_format}"
    expected = "{wanted_format}, or nothing at that path"
    remedy = "leave --create (create) away to use the target as it is, or name a path where nothing is"
    path: str
    found_format: str
    wanted_format: str


class DiskNotAttached(HomewardError):
    """No disk of this machine has the VMware disk UUID."""

    code = "HW-MT-049"
    what = "the disk with the UUID {disk_uuid} is not attached to this machine"
    found = "{reason} in {directory}"
    expected = "wwn-0x… or scsi-3… with this UUID, of a whole disk"
    remedy = "attach the disk to the master target, whose VM needs disk.EnableUUID = TRUE; look at ls -l {directory}"
    disk_uuid: str
    directory: str
    reason: str


class DiskUuidAmbiguous(HomewardError):
    """Several disks of this machine have the same VMware disk UUID."""

    code = "HW-MT-050"
    what = "several disks of this machine have the UUID {disk_uuid}"
    found = "{devices} in {directory}"
    expected = "one disk"
    remedy = "detach the copies, or give them UUIDs of their own (vmkfstools -J setuuid); nothing is guessed"
    disk_uuid: str
    directory: str
    devices: str


class GroupVoid(HomewardError):
    """A common point of a replication group did not come about; nobody of the group has it."""

    code = "HW-MT-053"
    retry = Retry.RECONNECT
    what = "the replication group {group} has no common point of this round"
    found = "{reason}"
    expected = "every member there, frozen and harvested in time, and each one's commit"
    remedy = "see why that machine did not answer; start all agents of the group again"
    group: str
    reason: str


class OtherGroup(HomewardError):
    """Agent and master target do not agree on the item's replication group."""

    code = "HW-MT-054"
    what = "the two ends name different replication groups for item {item}"
    found = "the agent says {found_group!r}"
    expected = "{expected_group!r}, as the master target's configuration says"
    remedy = "give [agent] group and the item's [[disk]] group the same name, or none"
    item: str
    found_group: str
    expected_group: str


class ReadBackDiffers(HomewardError):
    """What the target's medium holds is not what was written to it and flushed."""

    code = "HW-MT-055"
    retry = Retry.RESYNC
    what = "the target {path} does not hold what was written to it"
    found = "other content in block {block}, read again past the cache after the flush"
    expected = "what was written"
    remedy = (
        "run the same command again: it reads the target and compares; if it happens again, replace that disk"
    )
    path: str
    block: int
