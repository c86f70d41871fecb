"""What can go wrong at the configuration server itself; each fabric's errors have a module of their own."""

from drcore.errors import HomewardError, Retry


class ConfigRefused(HomewardError):
    """The configuration cannot be used; `todo` says whether to correct the file or what it names."""

    code = "HW-CONF-001"
    what = "the configuration {path} cannot be used"
    found = "{reason}"
    expected = "the keys of docs/configuration-confserver.md"
    remedy = "{todo}, then start the server again"
    path: str
    reason: str
    todo: str


class ItemMissing(HomewardError):
    """No such item (R015, R214)."""

    code = "HW-CONF-002"
    what = "the configuration server has no item {item}"
    found = "no such entry in its database"
    expected = "an item that was enabled"
    remedy = "look for its name with homeward items list; homeward items enable makes the machine an item"
    item: str


class JobMissing(HomewardError):
    """No such job."""

    code = "HW-CONF-003"
    what = "the configuration server has no job {job}"
    found = "no such entry in its database"
    expected = "a job that was started here"
    remedy = "look for its id with homeward jobs list"
    job: str


class TransitionIllegal(HomewardError):
    """The item's state does not allow what was asked."""

    code = "HW-CONF-004"
    what = "{verb} is not possible for an item that is {state}"
    found = "state {state}"
    expected = "state {allowed}"
    remedy = "choose what is possible now: {possible}"
    verb: str
    state: str
    allowed: str
    possible: str


class ItemBusy(HomewardError):
    """Another job holds the item."""

    code = "HW-CONF-005"
    what = "the item {item} is busy"
    found = "job {job} holds it"
    expected = "an item that no job holds"
    remedy = "wait for that job, or cancel it"
    item: str
    job: str


class PreflightRefused(HomewardError):
    """At least one pre-flight check said no."""

    code = "HW-CONF-006"
    what = "{verb} of {item} was not started; pre-flight checks that say no: {count}"
    found = "{reasons}"
    expected = "every check to be ok"
    remedy = "run the pre-flight (homeward preflight), follow the remedy of each check, then start again"
    verb: str
    item: str
    count: int
    reasons: str


class JobCancelled(HomewardError):
    """An operator cancelled the job; what it had done was undone."""

    code = "HW-CONF-007"
    what = "the job was cancelled"
    found = "a cancel that was asked for"
    expected = "a run to its end"
    remedy = "start the verb again when it is wanted: the item is as it was before the job"


class JobOver(HomewardError):
    """The job is not in a state in which this can be asked of it."""

    code = "HW-CONF-008"
    what = "{verb} is not possible for job {job}"
    found = "a job that is {status}"
    expected = "a job that is {allowed}"
    remedy = "look at the job; start the item's verb anew if it is still wanted"
    verb: str
    job: str
    status: str
    allowed: str


class AgentNotReady(HomewardError):
    """The agent did not report within its 15 minutes (R096, R205)."""

    code = "HW-CONF-009"
    what = "the agent on {vm} has not reported since the machine started"
    found = "no report after {minutes} minutes"
    expected = "a report within 15 minutes of the start"
    remedy = "check that the agent's service runs and starts by itself, and the path to this server (95226)"
    vm: str
    minutes: int


class DiskMissing(HomewardError):
    """A disk is not where the plan says (R058, R211)."""

    code = "HW-CONF-010"
    what = "disk {disk} was not found on {vm}"
    found = "disks {present}"
    expected = "a disk of this UUID"
    remedy = "find the file on the datastores, attach it to that VM, then retry the job; do not vMotion its storage"
    disk: str
    vm: str
    present: str


class OtherDisk(HomewardError):
    """The disk that the master target sees is not the one of the plan."""

    code = "HW-CONF-011"
    what = "the disk at {path} is not the one of the plan"
    found = "UUID {found_uuid}, {found_bytes} bytes"
    expected = "UUID {wanted_uuid}, {wanted_bytes} bytes"
    remedy = "attach the right disk to the master target, then retry the job; nothing was written"
    path: str
    found_uuid: str
    found_bytes: int
    wanted_uuid: str
    wanted_bytes: int


class DatastoreUnmapped(HomewardError):
    """The master target does not know where a datastore is on its machine."""

    code = "HW-CONF-012"
    what = "the master target cannot find {path}"
    found = "{reason}"
    expected = "a datastore that a [[replication.datastore]] maps to a directory"
    remedy = "add a [[replication.datastore]] for it, restart the server, retry the job"
    path: str
    reason: str


class SourceUnknown(HomewardError):
    """The running machine's disk cannot be read from anywhere."""

    code = "HW-CONF-013"
    what = "nobody can read disk {disk} of the running machine"
    found = "no [[replication.source]] for it"
    expected = "one that names its path"
    remedy = "add a [[replication.source]] with this disk, restart the server, retry the job"
    disk: str


class RoleFailed(HomewardError):
    """A role that was started ended with its own coded error, which is repeated here."""

    code = "HW-CONF-014"
    what = "the {role} ended with {role_code}: {role_what}"
    found = "{role_found}"
    expected = "{role_expected}"
    remedy = "{role_remedy}"
    role: str
    role_code: str
    role_what: str
    role_found: str
    role_expected: str
    role_remedy: str


class RoleDied(HomewardError):
    """A role that was started ended without a word."""

    code = "HW-CONF-015"
    retry = Retry.TRANSIENT
    what = "the {role} died"
    found = "{status}; its last words are in {log}"
    expected = "a report"
    remedy = "read the log, then retry the job: it goes on where it stopped"
    role: str
    status: str
    log: str


class NotDeallocated(HomewardError):
    """The final point would be read from a machine that may still write."""

    code = "HW-CONF-016"
    what = "the Azure machine {vm} is not stopped for good"
    found = "power {power}, deallocated {deallocated}"
    expected = "a machine that is stopped and deallocated"
    remedy = "find out who started it, stop it, retry the job"
    vm: str
    power: str
    deallocated: bool


class ProofFailed(HomewardError):
    """Source and target do not hold the same after the final point."""

    code = "HW-CONF-017"
    what = "disk {disk} at home does not hold what the Azure disk holds"
    found = "content root {target_root}"
    expected = "content root {source_root}"
    remedy = "retry the job: it compares from the start; if it happens again, look after the storage at home"
    disk: str
    source_root: str
    target_root: str


class TokenRefused(HomewardError):
    """A request came without the right bearer token."""

    code = "HW-CONF-019"
    what = "the request was refused"
    found = "{reason}"
    expected = "the bearer token of the server's token file"
    remedy = (
        "homeward: name that file with --token-file or HOMEWARD_TOKEN_FILE; "
        "other clients: send Authorization: Bearer TOKEN"
    )
    reason: str


class RequestMalformed(HomewardError):
    """A request's body or parameters make no sense."""

    code = "HW-CONF-020"
    what = "the request cannot be understood"
    found = "{reason}"
    expected = "what /openapi.json describes"
    remedy = "correct the request"
    reason: str


class StoreFailed(HomewardError):
    """The database cannot be used."""

    code = "HW-CONF-021"
    retry = Retry.TRANSIENT
    what = "the database {url} cannot be used"
    found = "{reason}"
    expected = "a database that this server may read and write"
    remedy = "check its URL, that it runs, its permissions and its free space"
    url: str
    reason: str


class ServerUnready(HomewardError):
    """The server cannot listen where it was told."""

    code = "HW-CONF-022"
    what = "the configuration server cannot listen on {address}"
    found = "{reason}"
    expected = "a free address of this machine"
    remedy = "choose another address in listen, or stop what uses this one"
    address: str
    reason: str


class ItemExists(HomewardError):
    """An item of this name exists with other facts."""

    code = "HW-CONF-023"
    what = "an item {name} exists already"
    found = "{reason}"
    expected = "a new name, or the same machine again"
    remedy = "choose another name, or disable the old item first"
    name: str
    reason: str


class DisksNotAsPlanned(HomewardError):
    """The machine in Azure has not the disks that an item is enabled with, or that a plan names."""

    code = "HW-CONF-024"
    what = "the Azure machine {vm} has not the disk {disk}"
    found = "disks {present}"
    expected = "every disk that the item names"
    remedy = "look at the machine in Azure; enable the item with the disks that it has (homeward items enable --disk)"
    vm: str
    disk: str
    present: str


class HomeRuns(HomewardError):
    """The machine in Azure must not start while the VM at home runs."""

    code = "HW-CONF-025"
    what = "{vm} still runs at home, so the machine in Azure was not started"
    found = "power {power}"
    expected = "a VM that is off: two running copies would part ways"
    remedy = "find out who turned it on, power it off, retry the job"
    vm: str
    power: str


class JobStopped(HomewardError):
    """A job that a former server left cannot go on by itself; undoing can."""

    code = "HW-CONF-026"
    what = "the job {job} cannot go on where the former server left it"
    found = "a workflow that is {status}, of version {version}"
    expected = "a workflow of version {wanted} that was under way"
    remedy = "run homeward jobs retry JOB, which undoes what the job did; then run the verb again"
    job: str
    status: str
    version: str
    wanted: str
