"""What can go wrong at a vCenter: HW-CONF-101 to 149, and 8038, which keeps the number that its sources gave it.

`vcenter` is host and port, `verb` and `subject` what was being done to what. A passing trouble is TRANSIENT: the
same verb may simply run again, it looks first.
"""

from drcore.errors import HomewardError, Retry


class VcenterUnreachable(HomewardError):
    """vCenter does not answer, or hung up."""

    code = "HW-CONF-101"
    retry = Retry.TRANSIENT
    what = "vCenter {vcenter} cannot be reached"
    found = "{reason}"
    expected = "an answer on the vSphere API"
    remedy = "check that vCenter runs and that this machine may connect to its port; homeward tries again by itself"
    vcenter: str
    reason: str


class VcenterBusy(HomewardError):
    """vCenter is there and cannot serve now, as while it starts."""

    code = "HW-CONF-102"
    retry = Retry.TRANSIENT
    what = "vCenter {vcenter} cannot serve the call at the moment"
    found = "{reason}"
    expected = "an answer of the vSphere API"
    remedy = "wait until vCenter's services have started; homeward tries again by itself"
    vcenter: str
    reason: str


class VcenterCertificateRefused(HomewardError):
    """vCenter's certificate is not one that may be trusted."""

    code = "HW-CONF-103"
    what = "the certificate of vCenter {vcenter} is not trusted"
    found = "{reason}"
    expected = "a valid certificate of that name from a trusted authority"
    remedy = "give vCenter's CA file, or its SHA-256 thumbprint read on vCenter itself, in the configuration"
    vcenter: str
    reason: str


class VcenterThumbprintDiffers(HomewardError):
    """vCenter shows another certificate than the pinned one. No password was sent."""

    code = "HW-CONF-104"
    what = "vCenter {vcenter} shows another certificate than the pinned one"
    found = "SHA-256 {actual}"
    expected = "SHA-256 {wanted}"
    remedy = "read its thumbprint on vCenter itself and configure that, if vCenter's certificate was renewed"
    vcenter: str
    actual: str
    wanted: str


class VcenterTrustRefused(HomewardError):
    """The settings say nothing usable about which certificate to trust."""

    code = "HW-CONF-105"
    what = "the trust settings for vCenter {vcenter} cannot be used"
    found = "{reason}"
    expected = "a readable PEM file of the authority, or a thumbprint of 64 hexadecimal digits"
    remedy = "correct the CA file or the thumbprint in the configuration"
    vcenter: str
    reason: str


class VcenterLoginRefused(HomewardError):
    """vCenter takes neither this name nor this password."""

    code = "HW-CONF-106"
    what = "vCenter {vcenter} refuses the login of {user}"
    found = "{reason}"
    expected = "the name and password of an account that may log in"
    remedy = (
        "correct the account or its password; after many failures the account may be locked for some minutes"
    )
    vcenter: str
    user: str
    reason: str


class PrivilegeMissing(HomewardError):
    """The account may not do this."""

    code = "HW-CONF-107"
    what = "the account {user} may not {verb} {subject}"
    found = "without the privilege {privileges} on {entity}"
    expected = "an account that has it"
    remedy = "give {user} a role with {privileges} on {entity} in vCenter, then run the job again"
    user: str
    verb: str
    subject: str
    privileges: str
    entity: str


class VmMissing(HomewardError):
    """No VM has that name."""

    code = "HW-CONF-108"
    what = "vCenter {vcenter} shows no VM named {vm}"
    found = "no VM of that name that this account may see"
    expected = "one registered VM of that name"
    remedy = "check the name, register the VM again, or let the account see its folder"
    vcenter: str
    vm: str


class VmAmbiguous(HomewardError):
    """Several VMs have that name."""

    code = "HW-CONF-109"
    what = "vCenter {vcenter} has {count} VMs named {vm}"
    found = "{count} VMs of one name"
    expected = "one VM of that name, or it cannot be told which one is meant"
    remedy = "rename the others"
    vcenter: str
    vm: str
    count: int


class VmInaccessible(HomewardError):
    """vCenter lists the VM and cannot read what it is made of."""

    code = "HW-CONF-110"
    retry = Retry.TRANSIENT
    what = "vCenter {vcenter} cannot read the VM {vm}"
    found = "the VM is {state}"
    expected = "a VM on a connected host, with its files in reach"
    remedy = "reconnect its host or datastore, or register the VM again"
    vcenter: str
    vm: str
    state: str


class HostMissing(HomewardError):
    """No host has that name."""

    code = "HW-CONF-111"
    what = "vCenter {vcenter} shows no host named {host}"
    found = "no host of that name that this account may see"
    expected = "a host of that name"
    remedy = "check the name, or add the host to vCenter again"
    vcenter: str
    host: str


class VmBusy(HomewardError):
    """Something else is being done with the VM, or its state has just changed."""

    code = "HW-CONF-112"
    retry = Retry.TRANSIENT
    what = "cannot {verb} {subject} at the moment"
    found = "{reason}"
    expected = "a VM with which nothing else is being done"
    remedy = "wait for the tasks of this VM that vCenter shows; homeward tries again by itself"
    verb: str
    subject: str
    reason: str


class TaskLate(HomewardError):
    """A task of vCenter takes longer than it may; it goes on there."""

    code = "HW-CONF-113"
    retry = Retry.TRANSIENT
    what = "vCenter's task to {verb} {subject} is not done"
    found = "{state} after {seconds:.0f} s"
    expected = "its end by then"
    remedy = "look at the task in vCenter, and whether the VM asks a question there; homeward goes on when it ended"
    verb: str
    subject: str
    state: str
    seconds: float


class FileIsLocked(HomewardError):
    """Somebody else holds the disk file."""

    code = "HW-CONF-114"
    what = "cannot {verb} {subject}: the file {file} is locked"
    found = "{reason}"
    expected = "a file that no other machine, host or backup holds"
    remedy = (
        "detach {file} from the VM that holds it, or end the backup that has it open, then run the job again"
    )
    verb: str
    subject: str
    file: str
    reason: str


class DiskFileMissing(HomewardError):
    """The disk file is gone."""

    code = "HW-CONF-115"
    what = "cannot {verb} {subject}: the file {file} is not there"
    found = "{reason}"
    expected = "the disk file at its place"
    remedy = "find out who moved or deleted the disk; restore it or protect the machine anew"
    verb: str
    subject: str
    file: str
    reason: str


class DiskInUse(HomewardError):
    """The disk file hangs on another VM."""

    code = "HW-CONF-116"
    what = "the disk {file} cannot be attached to VM {vm}"
    found = "it hangs on VM {holder}"
    expected = "a disk that hangs on no other VM: two writers would destroy it"
    remedy = "detach it from {holder} first"
    file: str
    vm: str
    holder: str


class DiskOnChain(HomewardError):
    """The disk's content is spread over a snapshot chain: its base file alone is not the disk."""

    code = "HW-CONF-117"
    what = "the disk {file} cannot be detached from VM {vm}"
    found = "a chain of snapshot files on {base}"
    expected = "a disk that is one file"
    remedy = "merge the snapshots of {vm} first; a linked clone has to be made a full one"
    vm: str
    file: str
    base: str


class DiskPlaceTaken(HomewardError):
    """The disk's place on its controller is not free."""

    code = "HW-CONF-118"
    what = "the disk {file} cannot go back to its place on VM {vm}"
    found = "{reason}"
    expected = "{controller} {bus}, unit {unit}, free for it"
    remedy = "clear that place in the VM's settings, then run the job again"
    file: str
    vm: str
    controller: str
    bus: int
    unit: int
    reason: str


class NoRoomForDisk(HomewardError):
    """The VM can hold no further disk."""

    code = "HW-CONF-119"
    what = "VM {vm} has no room for a further disk"
    found = "{disks} disks on {controllers} SCSI controllers"
    expected = "less than {disks_max} disks, and an LSI Logic controller with room or room for one"
    remedy = "wait until other machines are home and their disks are detached, or use a further master target"
    vm: str
    disks: int
    controllers: int
    disks_max: int


class DiskAmbiguous(HomewardError):
    """Several disks of the VM have that UUID."""

    code = "HW-CONF-120"
    what = "VM {vm} has {count} disks with the UUID {uuid}"
    found = "{files}"
    expected = "one disk of that UUID, or it cannot be told which one is meant"
    remedy = "give copied disks UUIDs of their own (vmkfstools -J setuuid) while they are detached"
    vm: str
    uuid: str
    count: int
    files: str


class DiskIsAnother(HomewardError):
    """The file holds another disk than the one that was there."""

    code = "HW-CONF-121"
    what = "the file {file} for VM {vm} holds another disk"
    found = "a disk with the UUID {actual}"
    expected = "the disk with the UUID {uuid}"
    remedy = "find out who replaced the file; nothing was written to it"
    file: str
    vm: str
    actual: str
    uuid: str


class SnapshotMissing(HomewardError):
    """There is no such snapshot, and the VM runs: it cannot have been reverted to it."""

    code = "HW-CONF-122"
    what = "VM {vm} cannot be taken back to the snapshot {snapshot}"
    found = "no snapshot of that name, and a VM that is not off"
    expected = "the snapshot"
    remedy = "find out in vCenter's events who removed the snapshot; its state cannot be had any more"
    vm: str
    snapshot: str


class SnapshotAmbiguous(HomewardError):
    """Several snapshots have that name."""

    code = "HW-CONF-123"
    what = "VM {vm} has {count} snapshots named {snapshot}"
    found = "{count} snapshots of one name"
    expected = "one, or it cannot be told which one is meant"
    remedy = "rename or remove the others in vCenter"
    vm: str
    snapshot: str
    count: int


class EffectMissing(HomewardError):
    """vCenter reported success, and what was asked for is not so."""

    code = "HW-CONF-124"
    retry = Retry.TRANSIENT
    what = "after vCenter's success report it is not so: {verb} {subject}"
    found = "{state}"
    expected = "what was asked for"
    remedy = "look at the VM's tasks and events in vCenter: something else acts on it; homeward tries again by itself"
    verb: str
    subject: str
    state: str


class DatastoreFull(HomewardError):
    """The datastore has no room."""

    code = "HW-CONF-125"
    what = "cannot {verb} {subject}: the datastore is full"
    found = "{reason}"
    expected = "room for snapshots and their merging"
    remedy = "free room on the datastore, then run the job again"
    verb: str
    subject: str
    reason: str


class HostUnavailable(HomewardError):
    """vCenter has lost the host, or the host takes no orders now."""

    code = "HW-CONF-126"
    retry = Retry.TRANSIENT
    what = "cannot {verb} {subject}: its host takes no orders"
    found = "{reason}"
    expected = "a connected host that is not in maintenance"
    remedy = "reconnect the host or end its maintenance; homeward tries again by itself"
    verb: str
    subject: str
    reason: str


class TaskCancelled(HomewardError):
    """Somebody cancelled the task."""

    code = "HW-CONF-127"
    what = "the task to {verb} {subject} was cancelled"
    found = "{reason}"
    expected = "a task that runs to its end"
    remedy = "find out who cancelled it in vCenter, then run the job again"
    verb: str
    subject: str
    reason: str


class VcenterRefused(HomewardError):
    """vCenter refuses for a reason that homeward has no other word for."""

    code = "HW-CONF-128"
    what = "vCenter {vcenter} refused to {verb} {subject}"
    found = "{fault}: {reason}"
    expected = "no fault"
    remedy = "look at the task in vCenter, correct what it says, then run the job again"
    vcenter: str
    verb: str
    subject: str
    fault: str
    reason: str


class VcenterGarbled(HomewardError):
    """What answers is not the vSphere API."""

    code = "HW-CONF-129"
    retry = Retry.TRANSIENT
    what = "vCenter {vcenter} gave an answer that is none of the vSphere API"
    found = "{reason}"
    expected = "an answer in SOAP"
    remedy = "check host and port, and whether a proxy answers instead; a vCenter that is starting does so for a while"
    vcenter: str
    reason: str


class ObjectGone(HomewardError):
    """What vCenter had just shown is gone."""

    code = "HW-CONF-130"
    retry = Retry.TRANSIENT
    what = "an object vanished while homeward was about to {verb} {subject}"
    found = "{gone} is gone"
    expected = "an object that stays"
    remedy = "nothing; homeward looks again by itself"
    verb: str
    subject: str
    gone: str


class DatastoreMissing(HomewardError):
    """The disk's datastore is not mounted on the VM's host."""

    code = "HW-CONF-131"
    what = "cannot {verb} {subject}: the datastore of {file} is not there"
    found = "{reason}"
    expected = "the datastore, mounted on the VM's host"
    remedy = "mount the datastore on that host, or move the VM to a host that has it"
    verb: str
    subject: str
    file: str
    reason: str


class FileRefused(HomewardError):
    """vCenter cannot use the file."""

    code = "HW-CONF-132"
    what = "cannot {verb} {subject}: vCenter cannot use the file {file}"
    found = "{reason}"
    expected = "a file on a datastore that the host may write"
    remedy = "check the datastore's access mode on the VM's host and the state of the file"
    verb: str
    subject: str
    file: str
    reason: str


class HostMemoryShort(HomewardError):
    """The host has too little memory to start the VM."""

    code = "8038"
    what = "the host of VM {vm} has too little memory to start it"
    found = "{free_bytes} bytes free"
    expected = "{wanted_bytes} bytes"
    remedy = "shut down or move other VMs of that host, or move {vm} to a larger one, then run the job again"
    vm: str
    free_bytes: int
    wanted_bytes: int
