"""Replication groups: common points of several machines, or none."""

import json
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.main import Agent
from drcore.clock import SystemClock
from drcore.errors import HomewardError
from masttarget.adapters.retention_files import RetentionFiles
from masttarget.main import Master
from masttarget.points import Kind
from masttarget.retention import ItemRetention, Policy, Retention
from tests.system.command import ended, homeward, start, wait_until, write_sparse
from tests.system.roles import Pair, Site, at_work, no_retry

MIB = 1024 * 1024
MEMBERS = 3


class Member:
    """A machine of a group: its agent, whose `freeze` can hang, and how often it stood still and went on."""

    def __init__(self, folder: Path, number: int, dice: random.Random) -> None:
        self.source = write_sparse(folder / f"source-{number}.raw", dice.randbytes(2 * MIB + number))
        self.target = write_sparse(folder / f"target-{number}.raw", dice.randbytes(2 * MIB + number))
        self.site = Site(folder, Pair(self.source, self.target))
        self.site.item = uuid.UUID(int=dice.getrandbits(128))
        self.folder = folder / f"agent-{number}"
        self.frozen = 0
        self.thawed = threading.Event()
        self.together: list[int] = []
        self.before_freeze = threading.Event()
        self.before_freeze.set()
        self.everyone: list[Member] = []

    def freeze(self) -> None:
        assert self.before_freeze.wait(60)
        self.thawed.clear()
        self.frozen += 1

    def harvest(self) -> None:
        pass

    def thaw(self) -> None:
        self.together.append(sum(member.frozen for member in self.everyone))
        self.frozen = 0
        self.thawed.set()

    def run(self, port: int, answers: dict["Member", object]) -> None:
        config = replace(self.site.agent(port), group="shop", state_directory=self.folder)
        try:
            answers[self] = Agent(config, no_retry, quiesce=self).run()
        except HomewardError as error:
            answers[self] = error


class Shop:
    """Some members and their master target."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder = folder
        self.members = [Member(folder, number, dice) for number in range(MEMBERS)]
        for member in self.members:
            member.everyone = self.members
        self.retention = folder / "retention"
        self.log: list[tuple[str, dict[str, object]]] = []

    @contextmanager
    def serving(self) -> Iterator[int]:
        disks = tuple(
            replace(disk, group="shop", keep_record=True)
            for member in self.members
            for disk in member.site.masttarget().disks
        )
        settings = replace(
            self.members[0].site.masttarget(),
            disks=disks,
            retention=self.retention,
            retention_own_volume=False,
        )
        master = Master(settings, lambda event, /, **facts: self.log.append((event, facts)))
        with at_work(master) as port:
            yield port

    def cycle(self, port: int, members: list[Member] | None = None) -> dict[Member, object]:
        """What the members' agents, together, came to."""
        answers: dict[Member, object] = {}
        threads = [
            threading.Thread(target=member.run, args=(port, answers)) for member in members or self.members
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        return answers

    def points(self) -> list[list[str]]:
        """Of each member, the points that its agents made, in order, as they are on the medium."""
        items = Retention(RetentionFiles(self.retention), SystemClock(), Policy(), lambda event, /, **_: None)
        found = [items.item(member.site.item.bytes).points for member in self.members]
        return [[point.id for point in each if point.kind is Kind.CRASH_CONSISTENT] for each in found]

    def equal(self) -> bool:
        return all(member.source.read_bytes() == member.target.read_bytes() for member in self.members)


@pytest.fixture
def shop(tmp_path: Path, dice: random.Random) -> Shop:
    return Shop(tmp_path, dice)


def test_members_stand_still_at_one_instant_and_get_one_point(shop: Shop, dice: random.Random) -> None:
    with shop.serving() as port:
        for _ in range(2):
            answers = shop.cycle(port)
            assert not [one for one in answers.values() if isinstance(one, HomewardError)]
            for member in shop.members:
                write_sparse(member.source, dice.randbytes(member.source.stat().st_size))
        answers = shop.cycle(port)
    points = shop.points()
    assert len(points[0]) == 3
    assert points[0] == points[1] == points[2]
    assert shop.equal()
    assert all(len(member.together) == 3 for member in shop.members), "thawed once in each round"
    for number in range(3):  # whoever thaws first finds all the others still frozen
        assert max(member.together[number] for member in shop.members) == MEMBERS
    assert not any((shop.retention / "groups").iterdir())
    assert homeward("masttarget", "verify", shop.retention, "--json").answer()["good"] is True


def test_a_member_that_does_not_freeze_voids_the_point_for_all(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masttarget.group.GROUP_FREEZE_SECONDS_MAX", 0.5)
    shop.members[1].before_freeze.clear()
    answers: dict[Member, object] = {}
    with shop.serving() as port:
        threads = [
            threading.Thread(target=member.run, args=(port, answers), daemon=True) for member in shop.members
        ]
        for thread in threads:
            thread.start()
        for index in (0, 2):
            threads[index].join(30)
            assert str(answers[shop.members[index]]).startswith("HW-MT-053")
            assert shop.members[index].thawed.is_set()
        shop.members[1].before_freeze.set()
        threads[1].join(30)
        assert isinstance(answers[shop.members[1]], HomewardError)
        assert not any(member.frozen for member in shop.members), "nobody stays frozen"
        assert shop.points() == [[], [], []]
        assert not [one for one in shop.cycle(port).values() if isinstance(one, HomewardError)]
    assert shop.equal()
    assert {tuple(each) for each in shop.points()} == {tuple(shop.points()[0])}


def test_a_member_that_does_not_come_voids_the_point_for_all(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masttarget.group.GROUP_GATHER_SECONDS_MAX", 0.5)
    with shop.serving() as port:
        answers = shop.cycle(port, shop.members[:2])
    assert [str(one)[:9] for one in answers.values()] == ["HW-MT-053"] * 2
    assert not any(member.together for member in shop.members), "nobody was frozen"
    assert shop.points() == [[], [], []]


@pytest.mark.parametrize("last", range(MEMBERS))
def test_no_member_is_ahead_when_publishing_breaks_off(
    last: int, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of one member cannot be written, whichever; afterwards all have the point, without any agent."""
    publish = ItemRetention.publish
    broken = True

    def breaking(self: ItemRetention, *words: object, **more: object) -> object:
        if broken and self.item == shop.members[last].site.item.bytes:
            raise OSError(5, "the medium is broken")
        return publish(self, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ItemRetention, "publish", breaking)
    with shop.serving() as port:
        answers = shop.cycle(port)
        assert all(isinstance(one, HomewardError) for one in answers.values())
    assert shop.points()[last] == []
    broken = False
    with shop.serving() as port:
        points = shop.points()
        assert len(points[0]) == 1
        assert points[0] == points[1] == points[2]
        assert not [one for one in shop.cycle(port).values() if isinstance(one, HomewardError)]
    points = shop.points()
    assert len(points[0]) == 2
    assert points[0] == points[1] == points[2]
    assert shop.equal()


def test_an_agent_that_is_stopped_while_it_waits_for_the_others_ends_at_once(shop: Shop) -> None:
    answers: list[HomewardError] = []

    def run() -> None:
        with pytest.raises(HomewardError) as caught:
            agent.run()
        answers.append(caught.value)

    with shop.serving() as port:
        agent = Agent(replace(shop.members[0].site.agent(port), group="shop"), no_retry)
        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: any(event == "session began" for event, _ in shop.log))
        began = time.monotonic()
        agent.stop()
        thread.join(30)
    assert time.monotonic() - began < 10
    assert answers[0].code == "HW-AGENT-007"


def test_an_agent_of_another_group_is_refused(shop: Shop) -> None:
    with shop.serving() as port:
        for group in ("", "other"):
            config = replace(shop.members[0].site.agent(port), group=group)
            with pytest.raises(HomewardError, match="HW-MT-054"):
                Agent(config, no_retry).run()


def test_three_agents_as_processes_get_one_point(shop: Shop) -> None:
    """The same with the commands; a source that nobody writes to needs nothing to stand still."""
    site = shop.members[0].site
    whole = Site(shop.folder, *(pair for member in shop.members for pair in member.site.pairs))
    where = json.dumps(str(shop.retention))
    shop.retention.mkdir()
    settings = whole.write_masttarget(retention=where, retention_own_volume="false")
    text = settings.read_text().replace("[[disk]]", '[[disk]]\ngroup = "shop"')
    for member in shop.members:
        disk = f'"\ndisk = "{member.site.pairs[0].disk}"'
        text = text.replace(f"{whole.item}{disk}", f"{member.site.item}{disk}")
    settings.write_text(text)
    process = start("masttarget", "serve", "--config", settings, "--json")
    try:
        assert process.stdout is not None
        port = int(json.loads(process.stdout.readline())["port"])
        agents = [
            start(
                "agent", "sync", "--json",
                "--config", member.site.write_agent(port, f"agent-{number}", group='"shop"'),
            )
            for number, member in enumerate(shop.members)
        ]  # fmt: skip
        found = [ended(agent).answer() for agent in agents]
    finally:
        process.terminate()
        outcome = ended(process)
    assert "Traceback" not in outcome.stderr
    assert len({each["point"] for each in found}) == 1
    assert {tuple(each) for each in shop.points()} == {(found[0]["point"],)}
    assert shop.equal()
    assert site.item != whole.item
