"""What can go wrong at the agent."""

from drcore.errors import HomewardError, Retry


class ConfigRefused(HomewardError):
    """The configuration cannot be used."""

    code = "HW-AGENT-001"
    what = "the configuration {path} cannot be used"
    found = "{reason}"
    expected = "the keys of docs/configuration.md"
    remedy = "correct the file"
    path: str
    reason: str


class SourceChanged(HomewardError):
    """The source was written to while it was read."""

    code = "HW-AGENT-002"
    what = "the source {path} changed while it was read"
    found = "{blocks} blocks whose content changed, the first at offset {offset}"
    expected = "a source that nobody writes to"
    remedy = "stop what writes to it (or read from a snapshot) and run the same command again"
    path: str
    blocks: int
    offset: int


class MasttargetUnreachable(HomewardError):
    """No connection to the master target."""

    code = "HW-AGENT-003"
    what = "the master target at {address} cannot be reached"
    found = "{reason}"
    expected = "a master target that listens there"
    remedy = "start it there, and check host, port and firewall"
    address: str
    reason: str


class StateFailed(HomewardError):
    """The agent's state directory cannot be used."""

    code = "HW-AGENT-004"
    what = "the state directory {path} cannot be used"
    found = "{reason}"
    expected = "a writable directory with free space"
    remedy = "make room or correct the permissions, then run the same command again"
    path: str
    reason: str


class TargetTooSmall(HomewardError):
    """Source and target cannot be compared: the target is smaller."""

    code = "HW-AGENT-005"
    what = "the target {path} is smaller than the source"
    found = "{target_bytes} bytes"
    expected = "{source_bytes} bytes"
    remedy = "choose a target of the source's size"
    path: str
    target_bytes: int
    source_bytes: int


class TargetLarger(HomewardError):
    """Source and target differ in size, and nobody allowed that."""

    code = "HW-AGENT-006"
    what = "the target {path} is larger than the source"
    found = "{target_bytes} bytes"
    expected = "{source_bytes} bytes"
    remedy = "check that it is the right disk; if it is, pass --allow-larger"
    path: str
    target_bytes: int
    source_bytes: int


class Stopped(HomewardError):
    """An operator stopped the work."""

    code = "HW-AGENT-007"
    what = "stopped"
    found = "an interrupt"
    expected = "a run to its end"
    remedy = (
        "run the same command again: a sync in place goes on where it stopped; one that writes a streamOptimized VMDK, "
        "a comparison or a proof begins anew"
    )


class NeverSettled(HomewardError):
    """The two ends keep disagreeing about the same blocks."""

    code = "HW-AGENT-008"
    what = "the master target keeps asking for the same blocks"
    found = "{blocks} blocks after {rounds} rounds"
    expected = "blocks that arrive as they were sent"
    remedy = "run the same command again; if it happens again, check the memory of both machines"
    blocks: int
    rounds: int


class SourceTouched(HomewardError):
    """Somebody wrote to the source while it was read; what was read before may be older than what was read after."""

    code = "HW-AGENT-009"
    what = "the source {path} was written to during the run"
    found = "{found_mark}"
    expected = "{first_mark}"
    remedy = "stop what writes to it (or read from a snapshot) and run the same command again"
    path: str
    first_mark: str
    found_mark: str


class FrozenTooLong(HomewardError):
    """The source was thawed before the others of its group had harvested: there is no common instant."""

    code = "HW-AGENT-010"
    retry = Retry.RECONNECT
    what = "the source was frozen for {seconds:.0f} seconds without a thaw from the master target"
    found = "no word that every member of the group has harvested; the source was thawed all the same"
    expected = "a thaw within {most:.0f} seconds"
    remedy = "see that all machines of the group answer; the next attempt makes a new point"
    seconds: float
    most: float


class ScriptFailed(HomewardError):
    """A program of the administrator did not do its part."""

    code = "HW-AGENT-011"
    what = "the {phase} program {program} failed"
    found = "{reason}"
    expected = "exit status 0 within its time"
    remedy = "run it by hand with HOMEWARD_PHASE={phase}; a point without it is crash-consistent, never app-consistent"
    phase: str
    program: str
    reason: str


class FreezeFailed(HomewardError):
    """A file system did not stand still for as long as it had to."""

    code = "HW-AGENT-012"
    what = "the file system at {mount} was not frozen until the snapshot was done"
    found = "{reason}"
    expected = "a file system that stands still while the snapshot is made"
    remedy = "see that the snapshot takes less than freeze_seconds, and who else freezes; the point is crash-consistent"
    mount: str
    reason: str


class FreezeRefused(HomewardError):
    """The mount point may not be frozen."""

    code = "HW-AGENT-013"
    what = "the file system at {mount} will not be frozen"
    found = "{reason}"
    expected = "a mount point that the agent itself does not write to"
    remedy = "correct freeze in [quiesce], or move state_directory and the agent's log to another file system"
    mount: str
    reason: str
