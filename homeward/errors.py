"""What can go wrong at the front door."""

from drcore.errors import HomewardError


class UsageRefused(HomewardError):
    """The command line makes no sense."""

    code = "HW-HOME-001"
    what = "the command line cannot be understood"
    found = "{reason}"
    expected = "a command as homeward --help shows it"
    remedy = "look at {help}"
    reason: str
    help: str


class DirectoryMissing(HomewardError):
    """The directory of the target does not exist."""

    code = "HW-HOME-002"
    what = "the directory {path} for the target does not exist"
    found = "nothing, or no directory, at that path"
    expected = "a directory in which the target is or will be created"
    remedy = "check the path, mount the datastore, or make the directory"
    path: str


class MasttargetDied(HomewardError):
    """The master-target process of a local sync ended by itself."""

    code = "HW-HOME-003"
    what = "the master target process ended by itself"
    found = "{status}"
    expected = "a process that runs until the sync is done"
    remedy = "run the same command again: it goes on where it stopped; its log is {log}"
    status: str
    log: str


class NotConfirmed(HomewardError):
    """The operator did not confirm that the target may be overwritten."""

    code = "HW-HOME-004"
    what = "the target {path} was not confirmed"
    found = "the answer no"
    expected = "yes"
    remedy = "run the command again with the right target; nothing was changed"
    path: str


class SameDisk(HomewardError):
    """Source and target are the same disk."""

    code = "HW-HOME-005"
    what = "source and target are the same disk"
    found = "{path} as both"
    expected = "two different disks"
    remedy = "check the two paths"
    path: str


class WorkplaceFailed(HomewardError):
    """The directory in which a sync remembers itself cannot be written."""

    code = "HW-HOME-007"
    what = "{path} cannot be written"
    found = "{reason}"
    expected = "a writable directory with free space"
    remedy = "make room or correct the permissions, then run the same command again"
    path: str
    reason: str


class LocalStateDamaged(HomewardError):
    """What an earlier run of sync left cannot be read."""

    code = "HW-HOME-006"
    what = "what an earlier run left in {path} cannot be used"
    found = "{reason}"
    expected = "the files of an earlier run of sync"
    remedy = (
        "remove the directory and run the same command again: it compares from the start, nothing is lost"
    )
    path: str
    reason: str


class ServerUnreachable(HomewardError):
    """The configuration server does not answer."""

    code = "HW-HOME-008"
    what = "the configuration server at {server} does not answer"
    found = "{reason}"
    expected = "a configuration server that listens there"
    remedy = "start it with homeward confserver serve --config FILE, and check --server"
    server: str
    reason: str


class ServerAway(ServerUnreachable):
    """The configuration server went away while a job of its was watched."""

    remedy = (
        "start the server with homeward confserver serve --config FILE, and the job, which is not lost, goes on; "
        "then homeward jobs watch {item}"
    )
    item: str


class TokenMissing(HomewardError):
    """There is no token for the configuration server."""

    code = "HW-HOME-009"
    what = "no token for the configuration server"
    found = "{reason}"
    expected = "the token that the server's token_file holds"
    remedy = "pass --token-file FILE, or set HOMEWARD_TOKEN_FILE to that file or HOMEWARD_TOKEN to the token"
    reason: str


class OutputFailed(HomewardError):
    """The result could not be written to stdout."""

    code = "HW-HOME-010"
    what = "the result could not be written to stdout"
    found = "{reason}"
    expected = "a stdout that takes it"
    remedy = "make room where stdout leads and run the same command again to see the result; the work itself is done"
    reason: str


class NothingToWatch(HomewardError):
    """The item has had no job yet."""

    code = "HW-HOME-011"
    what = "there is nothing to watch"
    found = "no job of item {item} yet"
    expected = "a job that runs or ran"
    remedy = "start one: homeward reprotect {item}"
    item: str


class ProofRefused(HomewardError):
    """The proof in a job's report was not made with this key, or was changed since."""

    code = "HW-HOME-012"
    what = "the proof of job {job} is not authentic"
    found = "{reason}"
    expected = "a proof whose tag the key in {key_file} makes"
    remedy = (
        "check that it is the key_file of the server's [replication]; if it is, somebody changed the report"
    )
    job: str
    key_file: str
    reason: str
