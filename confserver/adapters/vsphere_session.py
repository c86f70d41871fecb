"""A login at vCenter that renews itself, the property collector, and tasks that are followed to their end."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pyVmomi import vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter
from pyVmomi.VmomiSupport import GetServiceVersions, versionIdMap

from confserver.adapters.vsphere_faults import FOREIGN, About, Unreadable, kind_of, translated
from confserver.adapters.vsphere_trust import VsphereSettings, trust
from confserver.errors_fabric import TaskLate
from drcore.clock import Clock
from drcore.limits import VCENTER_IDLE_SECONDS_MAX, VCENTER_OBJECTS_MAX, VCENTER_WAIT_SECONDS_MAX

Answer = TypeVar("Answer")
OLDEST: Final = "vim.version.version9"
"""vSphere 5.5: every vCenter speaks it, and what it is may be asked in it."""
OF_A_SESSION: Final = (vim.view.View, vmodl.query.PropertyCollector)
"""What ends with its session: where such an object is gone, so is the session."""
TASK_PATHS: Final = ["info.state", "info.error", "info.progress"]


def reference_of(thing: Any) -> str:
    """The name of a managed object within its vCenter, such as `vm-42`."""
    return str(thing._moId)  # noqa: SLF001 - pyvmomi has no public word for it


@dataclass(frozen=True, slots=True)
class Service:
    """One login: its connection, what vCenter is, the session's key, and a view of all VMs and hosts.

    The view follows the inventory and ends with the session.
    """

    stub: Any
    content: Any
    session_key: str
    view: Any

    def bound(self, kind: Any, reference: str) -> Any:
        """The managed object of that name, spoken to in this session."""
        return kind(reference, self.stub)

    def read(
        self, roots: list[Any], *paths: tuple[Any, list[str]], through: tuple[Any, ...] = ()
    ) -> list["Found"]:
        """The properties that are set, of the roots and of what is reached through the traversals.

        Raises the first fault that vCenter names for a property.
        """
        collector = vmodl.query.PropertyCollector
        spec = collector.FilterSpec(
            propSet=[collector.PropertySpec(type=kind, pathSet=names, all=False) for kind, names in paths],
            objectSet=[collector.ObjectSpec(obj=root, skip=False, selectSet=list(through)) for root in roots],
        )
        options = collector.RetrieveOptions(maxObjects=VCENTER_OBJECTS_MAX)
        page = self.content.propertyCollector.RetrievePropertiesEx([spec], options)
        found = []
        while page is not None:
            found += [Found.of(one) for one in page.objects]
            if not page.token:
                break
            page = self.content.propertyCollector.ContinueRetrievePropertiesEx(page.token)
        return found

    def every(self, kind: Any, paths: list[str]) -> list["Found"]:
        """All VMs, or all hosts, that this account sees, with those properties."""
        return self.read([self.view], (kind, paths), through=(step(vim.view.ContainerView, "view"),))


@dataclass(frozen=True, slots=True)
class Found:
    """An object and those of its properties that are set."""

    thing: Any
    values: dict[str, Any]

    @classmethod
    def of(cls, content: Any) -> "Found":
        """What an answer of the property collector holds. Raises a fault that stands for a property."""
        for missing in content.missingSet or ():
            raise missing.fault
        return cls(thing=content.obj, values={item.name: item.val for item in content.propSet or ()})


def step(kind: Any, path: str) -> Any:
    """A traversal from an object of that kind through one of its properties."""
    return vmodl.query.PropertyCollector.TraversalSpec(
        name=f"{kind_of(kind)}-{path}", type=kind, path=path, skip=False
    )


class Stub(SoapStubAdapter):
    """pyvmomi's connection, with one word for all that its parser raises over an answer that it does not know."""

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:  # noqa: N802, N803
        """What the method answers. Raises one of `FOREIGN` only."""
        try:
            return super().InvokeMethod(mo, info, args, outerStub)
        except FOREIGN:
            raise
        except Exception as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from error


class Session:
    """Calls to one vCenter in a login that begins with the first call and is renewed when it has expired.

    It may be shared by threads. The clock is asked for deadlines only.
    """

    def __init__(self, settings: VsphereSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._service: Service | None = None

    def about(self, verb: str, subject: str) -> About:
        """The facts for errors of a call."""
        return About(vcenter=self._settings.address, user=self._settings.user, verb=verb, subject=subject)

    def call(self, about: About, do: Callable[[Service], Answer]) -> Answer:
        """What `do` answers in a live session; `do` runs again, once, after a new login when the session is over.

        vCenter says so before it does anything, so that running it again does nothing twice; the same holds for a
        certificate that changed, as over such a connection nothing was sent.
        Errors: HW-CONF codes only, see `vsphere_faults`.
        """
        with _coded(about):
            service = self._live()
            try:
                return do(service)
            except (vim.fault.NotAuthenticated, ssl.SSLCertVerificationError):
                self._forget(service)  # the login looks at a new certificate afresh
            except vmodl.fault.ManagedObjectNotFound as error:
                if not isinstance(error.obj, OF_A_SESSION):
                    raise
                self._forget(service)
            return do(self._live())

    def follow(self, about: About, task: str, seconds: float) -> None:
        """The task has succeeded. Raises what it failed with, HW-CONF-113 when it is not over in time."""
        deadline = self._clock.monotonic() + seconds
        self.call(about, lambda service: self._watch(service, about, task, deadline, seconds))

    def close(self) -> None:
        """The session has ended; where vCenter cannot be told, it ends there by itself. A later call logs in again."""
        with self._lock:
            service, self._service = self._service, None
        if service is None:
            return
        try:
            service.content.sessionManager.Logout()
        except FOREIGN:
            pass  # it has expired already, or vCenter is away
        finally:
            service.stub.DropConnections()

    def _live(self) -> Service:
        with self._lock:
            if self._service is None:
                self._service = self._login()
            return self._service

    def _forget(self, service: Service) -> None:
        with self._lock:
            if self._service is service:  # else another thread has logged in again already
                self._service = None
        service.stub.DropConnections()

    def _login(self) -> Service:
        settings = self._settings
        stub = Stub(
            host=settings.host,
            port=settings.port,
            version=OLDEST,
            sslContext=trust(settings),
            httpConnectionTimeout=settings.timeout_seconds,
            connectionPoolTimeout=VCENTER_IDLE_SECONDS_MAX,
        )
        try:
            instance = vim.ServiceInstance("ServiceInstance", stub)
            content: Any = instance.RetrieveContent()
            if content is None:
                raise Unreadable("it says nothing of itself")
            stub.ComputeVersionInfo(_spoken(str(content.about.apiVersion)))
            content = instance.RetrieveContent()  # once more, with what the newer version knows
            session = content.sessionManager.Login(settings.user, settings.password.reveal().decode())
            seen = [vim.VirtualMachine, vim.HostSystem]
            view = content.viewManager.CreateContainerView(content.rootFolder, seen, True)
        except BaseException:
            stub.DropConnections()
            raise
        return Service(stub=stub, content=content, session_key=str(session.key), view=view)

    def _watch(self, service: Service, about: About, task: str, deadline: float, seconds: float) -> None:
        """Follows the task with a property collector of its own: waits on a shared one would cancel each other."""
        kinds = vmodl.query.PropertyCollector
        thing = service.bound(vim.Task, task)
        collector = service.content.propertyCollector.CreatePropertyCollector()
        watched = kinds.FilterSpec(
            propSet=[kinds.PropertySpec(type=vim.Task, pathSet=TASK_PATHS, all=False)],
            objectSet=[kinds.ObjectSpec(obj=thing, skip=False)],
        )
        collector.CreateFilter(watched, partialUpdates=True)
        version = ""
        known: dict[str, Any] = {"info.state": "queued"}
        while known["info.state"] not in (vim.TaskInfo.State.success, vim.TaskInfo.State.error):
            left = deadline - self._clock.monotonic()
            if left <= 0:
                progress = known.get("info.progress")
                state = str(known["info.state"]) + (f" at {progress} %" if progress is not None else "")
                raise TaskLate(verb=about.verb, subject=about.subject, state=state, seconds=seconds)
            # half the HTTP timeout, so that a silent wait is not taken for a dead connection
            patience = min(VCENTER_WAIT_SECONDS_MAX, self._settings.timeout_seconds / 2, left)
            update = collector.WaitForUpdatesEx(
                version, kinds.WaitOptions(maxWaitSeconds=max(1, int(patience)))
            )
            if update is not None:
                version = update.version
                known |= _changes(update)
        collector.DestroyPropertyCollector()  # after a failure the session's end does it
        if known["info.state"] == vim.TaskInfo.State.error:
            raise known["info.error"]


def _changes(update: Any) -> dict[str, Any]:
    return {
        change.name: change.val
        for filter_set in update.filterSet
        for changed in filter_set.objectSet
        for change in changed.changeSet
        if change.val is not None
    }


def _spoken(api_version: str) -> str:
    """The newest version of the API that both this library and a vCenter of that version speak."""

    def numbers(text: str) -> tuple[int, ...]:
        parts = text.split(".")
        return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()

    known = [(numbers(versionIdMap[name]), name) for name in GetServiceVersions("vim25")]
    fitting = [pair for pair in known if pair[0] and pair[0] <= numbers(api_version)]
    return max(fitting, default=((), OLDEST))[1]


@contextmanager
def _coded(about: About) -> Iterator[None]:
    try:
        yield
    except FOREIGN as error:
        raise translated(error, about) from error
