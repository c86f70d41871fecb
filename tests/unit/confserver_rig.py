"""A configuration server on fakes and a real database, whose steps can be made to fail."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import dbos._dbos

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
POLL_SECONDS: Final = 0.01
"""Instead of DBOS's second, which recovery and an orderly end wait for."""


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
    """Everything wired, on SQLite where no URL is told. `world` may be turned to another file between jobs."""

    def __init__(self, folder: Path, database: str = "") -> None:
        self.folder = folder
        self.world = World(folder / "world.json")
        self.clock = FakeClock()
        self.saboteur = Saboteur()
        self.store = Store(database or f"sqlite:///{folder / 'store.sqlite'}")
        self.vsphere = FakeVSphere(self.world)
        self.azure = FakeAzure(self.world)
        ports = Ports(self.vsphere, self.azure, FakeReplication(self.world))
        verbs: Mapping[str, Verb] = MappingProxyType(
            {name: self.saboteur.wrap(verb) for name, verb in services.VERBS.items()}
        )
        engine = Engine(database or f"sqlite:///{folder / 'jobs.sqlite'}", poll_seconds=POLL_SECONDS)
        self.jobs = Jobs(engine, self.store, ports, verbs, self.clock, KEY)
        # A killed job is taken up again through a queue of DBOS's own, whose interval has no setting.
        dbos._dbos._get_or_create_dbos_registry().get_internal_queue()._polling_interval_sec = POLL_SECONDS
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
def running(folder: Path, database: str = "") -> Iterator[Rig]:
    """A rig whose jobs run."""
    rig = Rig(folder, database)
    rig.jobs.start()
    try:
        yield rig
    finally:
        rig.jobs.close()
        rig.store.close()
