"""A configuration server on fakes and SQLite, whose steps can be made to fail."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from confserver import service as services
from confserver.items import Item, Job
from confserver.jobs import Engine, Jobs
from confserver.service import Enabling, Service, Site
from confserver.steps import Ports, Step, Verb, Work
from confserver.store import Store
from drcore.secret import Secret
from tests.unit.confserver_fakes import (
    AZURE_VM,
    ITEM_DISKS,
    FakeAzure,
    FakeClock,
    FakeNetwork,
    FakeReplication,
    FakeVSphere,
    World,
    broken,
)

KEY = Secret(b"k" * 32)


@dataclass(slots=True)
class Saboteur:
    """Fails one step, before or after it did its work, in its phase; `times` times."""

    verb: str = ""
    step: str = ""
    phase: str = "do"
    after: bool = False
    times: int = 0

    def wrap(self, verb: Verb) -> Verb:
        """The verb with every step watched."""
        return replace(verb, steps=tuple(self._step(verb.name, step) for step in verb.steps))

    def _step(self, verb: str, step: Step) -> Step:
        do = self._action(verb, step.name, "do", step.do)
        return replace(step, do=do, undo=self._action(verb, step.name, "undo", step.undo))

    def _action(
        self, verb: str, name: str, phase: str, action: Callable[[Work], None]
    ) -> Callable[[Work], None]:
        def watched(work: Work) -> None:
            mine = (self.verb, self.step, self.phase) == (verb, name, phase) and self.times > 0
            if mine:
                self.times -= 1
            if mine and not self.after:
                raise broken()
            action(work)
            if mine:
                raise broken()

        return watched


class Rig:
    """Everything wired. `world` may be turned to another file between jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world = World(folder / "world.json")
        self.clock = FakeClock()
        self.saboteur = Saboteur()
        self.store = Store(f"sqlite:///{folder / 'store.sqlite'}")
        self.vsphere = FakeVSphere(self.world)
        self.azure = FakeAzure(self.world)
        ports = Ports(self.vsphere, self.azure, FakeReplication(self.world))
        verbs: Mapping[str, Verb] = MappingProxyType(
            {name: self.saboteur.wrap(verb) for name, verb in services.VERBS.items()}
        )
        engine = Engine(f"sqlite:///{folder / 'jobs.sqlite'}")
        self.jobs = Jobs(engine, self.store, ports, verbs, self.clock, KEY)
        site = Site("linux", (("192.0.2.1", 443),))
        self.service = Service(self.store, self.jobs, ports, FakeNetwork(), self.clock, site)

    def enable(self, name: str = "web") -> Item:
        """The item of the fakes' machine."""
        return self.service.enable(
            Enabling(name, "web", "mt", AZURE_VM, "linux", ITEM_DISKS, self.clock.now(), "")
        )

    def another(self, name: str) -> Item:
        """A new world as it was at first, and an item of it."""
        self.world.__init__(self.folder / f"{name}.json")  # type: ignore[misc]
        return self.enable(name)

    def do(self, item: Item, verb: str) -> Job:
        """The verb's job, ended."""
        return self.jobs.wait(self.service.begin(item.id, verb))


@contextmanager
def running(folder: Path) -> Iterator[Rig]:
    """A rig whose jobs run."""
    rig = Rig(folder)
    rig.jobs.start()
    try:
        yield rig
    finally:
        rig.jobs.close()
        rig.store.close()
