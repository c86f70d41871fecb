"""Pre-flight checks: what was observed, what is expected, what to do. Pure functions over facts gathered before.

A check never changes anything and never raises: what could not be found out is `unknown`, with the reason as observed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from confserver.items import Item
from confserver.ports import AzureVm, Datastore, Vcenter, Vm


class Result(Enum):
    """What a check says."""

    OK = "ok"
    NO = "no"
    WARN = "warn"
    UNKNOWN = "unknown"
    WAIT = "wait"
    """Not yet, but soon by itself; `wait_seconds` says when."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `requirement` is its number in docs/requirements.md; `code` the sources' own where they have one."""

    requirement: str
    code: str
    title: str
    result: Result
    observed: str
    expected: str
    remedy: str
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Path:
    """One probed network path; `reason` is empty when something answered."""

    host: str
    port: int
    reason: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the checks look at; what nobody knows is None, with a reason in `gaps` under its name."""

    item: Item | None
    azure: AzureVm | None
    vcenter: Vcenter | None
    vm: Vm | None
    masttarget: Vm | None
    host_vms: tuple[str, ...] | None
    """Names of the VMs on the master target's host."""
    datastores: tuple[Datastore, ...] | None
    """What the master target's host sees."""
    missing_privileges: tuple[str, ...] | None
    masttarget_os: str
    reserved_disks: int
    """Disks of other items whose jobs are about to attach them to the same master target."""
    paths: tuple[Path, ...]
    now: float
    gaps: dict[str, str]

    def gap(self, name: str) -> str:
        """Why the field is None."""
        return self.gaps.get(name, "not asked, because something before it failed")


@dataclass(frozen=True, slots=True)
class Rule:
    """A check before it has looked: without the facts in `needs` it is unknown; `look` gives result and sight."""

    requirement: str
    code: str
    title: str
    expected: str
    remedy: str
    needs: tuple[str, ...]
    look: Callable[[Facts], tuple[Result, str] | tuple[Result, str, float]]


def run(rules: Iterable[Rule], facts: Facts) -> tuple[Check, ...]:
    """Every check's finding, in the order of the rules."""
    return tuple(_run(rule, facts) for rule in rules)


def refused(checks: Iterable[Check]) -> tuple[Check, ...]:
    """The checks that stand in the way: those that say no, and those that could not look."""
    return tuple(check for check in checks if check.result in (Result.NO, Result.UNKNOWN))


def _run(rule: Rule, facts: Facts) -> Check:
    wait = 0.0
    missing = next((name for name in rule.needs if getattr(facts, name) is None), None)
    if missing is not None:
        result, observed = Result.UNKNOWN, f"{missing} is not known: {facts.gap(missing)}"
    else:
        result, observed, *rest = rule.look(facts)
        wait = rest[0] if rest else 0.0
    code = rule.code or f"HW-CHECK-{rule.requirement[1:]}"
    return Check(rule.requirement, code, rule.title, result, observed, rule.expected, rule.remedy, wait)


def verdict(good: bool, observed: str) -> tuple[Result, str]:
    """Ok or no, and what was seen."""
    return (Result.OK if good else Result.NO), observed
