"""The barrier of a replication group, against members that are slow, gone, or hostile."""

import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest

from drcore.clock import SystemClock
from drcore.errors import HomewardError
from masttarget.adapters.group_files import GroupFiles
from masttarget.adapters.retention_files import RetentionFiles
from masttarget.config import DiskConfig
from masttarget.errors import GroupVoid
from masttarget.group import Group
from masttarget.groups import Groups
from masttarget.retention import Policy, Retention
from wireproto.barrier import Prepare, Thaw
from wireproto.errors import MessageRefused
from wireproto.messages import Commit, Message

ITEMS = (b"a" * 16, b"b" * 16, b"c" * 16)


class FakeMember:
    """Stands where a session and its first lane stand."""

    def __init__(self, item: bytes) -> None:
        self.item = item
        self.primary = self
        self.told: list[Message] = []
        self.ended: HomewardError | None = None

    def send(self, stream: int, message: Message) -> None:
        self.told.append(message)

    def end(self, error: HomewardError) -> None:
        self.ended = self.ended or error


class Rig:
    """A group, its members, and timers that ring when they are told to."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []
        self.points = iter(bytes([number]) * 16 for number in range(1, 100_000))
        self.group = Group("shop", frozenset(ITEMS), lambda: next(self.points), self.timer)
        self.members = {item: FakeMember(item) for item in ITEMS}

    def timer(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        self.timers.append(call)
        return lambda: self.timers.remove(call) if call in self.timers else None

    def enrol(self, *items: bytes) -> bytes:
        for item in items or ITEMS:
            self.group.enrol(item, self.members[item])  # type: ignore[arg-type]
        told = self.members[ITEMS[0]].told
        return told[-1].point if told and isinstance(told[-1], Prepare) else b""

    def frozen(self, item: bytes, point: bytes) -> None:
        self.group.frozen(item, self.members[item], point)  # type: ignore[arg-type]

    def harvested(self, item: bytes, point: bytes) -> None:
        self.group.harvested(item, self.members[item], point)  # type: ignore[arg-type]

    def commit(self, item: bytes, point: bytes) -> bool:
        return bool(self.group.commit(item, self.members[item], Commit(point, bytes(16), ())))  # type: ignore[arg-type]

    def thawed(self) -> list[bool]:
        return [any(isinstance(one, Thaw) for one in member.told) for member in self.members.values()]

    def void(self) -> bool:
        return all(isinstance(member.ended, GroupVoid) for member in self.members.values())


def test_nobody_thaws_before_the_last_has_harvested_and_nobody_publishes_before_the_last_commit() -> None:
    rig = Rig()
    assert rig.enrol(*ITEMS[:2]) == b""
    point = rig.enrol(ITEMS[2])
    for item in ITEMS:
        rig.frozen(item, point)
        assert rig.thawed() == [False] * 3
    for item in ITEMS:
        assert rig.thawed() == [False] * 3
        rig.harvested(item, point)
    assert rig.thawed() == [True] * 3
    assert not rig.timers, "no time runs any more"
    assert [rig.commit(item, point) for item in ITEMS] == [False, False, True]
    rig.group.leave(ITEMS[0], rig.members[ITEMS[0]])  # type: ignore[arg-type]
    assert rig.members[ITEMS[1]].ended is None, "what is being published is not taken back"
    rig.group.published()
    assert rig.enrol() != point


@pytest.mark.parametrize("step", range(9))
def test_a_member_that_stops_at_any_step_voids_the_round_for_all(step: int) -> None:
    """Before each step of the last member its time is up, or, once there is no limit, its session ends."""
    rig = Rig()
    point = rig.enrol()
    steps = [(verb, item) for verb in (rig.frozen, rig.harvested, rig.commit) for item in ITEMS]
    for verb, item in steps[:step]:
        verb(item, point)
    if rig.timers:
        rig.timers[-1]()
    else:
        rig.group.leave(ITEMS[2], rig.members[ITEMS[2]])  # type: ignore[arg-type]
    assert rig.void()
    with pytest.raises(GroupVoid):
        rig.commit(ITEMS[0], point)


def test_who_does_not_come_in_time_is_named() -> None:
    rig = Rig()
    rig.enrol(*ITEMS[:2])
    rig.timers[-1]()
    assert ITEMS[2].hex() in str(rig.members[ITEMS[0]].ended)
    assert rig.members[ITEMS[2]].ended is None


def test_a_member_that_comes_again_voids_the_round_and_begins_another() -> None:
    rig = Rig()
    rig.enrol()
    rig.members[ITEMS[0]] = again = FakeMember(ITEMS[0])
    rig.group.enrol(ITEMS[0], again)  # type: ignore[arg-type]
    assert isinstance(rig.members[ITEMS[1]].ended, GroupVoid)
    assert again.ended is None


@pytest.mark.parametrize(
    "hostile",
    [
        lambda rig, point: rig.harvested(ITEMS[0], point),
        lambda rig, point: [rig.frozen(ITEMS[0], point) for _ in range(2)],
        lambda rig, point: rig.frozen(ITEMS[0], b"x" * 16),
        lambda rig, point: rig.commit(ITEMS[0], point),
        lambda rig, point: [rig.frozen(ITEMS[0], point), rig.commit(ITEMS[0], point)],
    ],
    ids=("harvested first", "frozen twice", "another point", "commit first", "commit before the thaw"),
)
def test_a_word_out_of_turn_is_refused(hostile: Callable[[Rig, bytes], object]) -> None:
    rig = Rig()
    point = rig.enrol()
    with pytest.raises(MessageRefused):
        hostile(rig, point)


def test_a_word_before_the_last_member_has_come_is_refused() -> None:
    rig = Rig()
    rig.enrol(*ITEMS[:2])
    with pytest.raises(MessageRefused):
        rig.frozen(ITEMS[0], b"\1" * 16)


def test_members_in_any_order_get_the_same_point_or_none(dice: random.Random) -> None:
    """All orders that threads may bring about, and a death at any instant: nobody publishes alone."""
    for _ in range(300):
        rig = Rig()
        point = rig.enrol(*dice.sample(ITEMS, 3))
        left = {item: [rig.frozen, rig.harvested, rig.commit] for item in ITEMS}
        published = 0
        dies = dice.randrange(12)
        for number in range(9):
            able = [item for item in ITEMS if left[item] and (len(left[item]) > 1 or all(rig.thawed()))]
            item = dice.choice(able)
            if number == dies:
                rig.group.leave(item, rig.members[item])  # type: ignore[arg-type]
                assert rig.void()
                break
            published += left[item].pop(0)(item, point) is True
        assert published == (0 if dies < 9 else 1)


def test_a_round_that_is_decided_holds_up_who_comes_again() -> None:
    rig = Rig()
    point = rig.enrol()
    for verb in (rig.frozen, rig.harvested, rig.commit):
        for item in ITEMS:
            verb(item, point)
    again = threading.Thread(target=rig.enrol, args=(ITEMS[0],))
    again.start()
    again.join(0.1)
    assert again.is_alive()
    rig.group.abandon("the medium is broken")
    again.join(10)
    assert not again.is_alive()
    assert isinstance(rig.members[ITEMS[1]].ended, GroupVoid)


def test_where_nothing_is_to_be_made_good_nobody_waits_for_a_member_that_waits_for_room(
    tmp_path: Path,
) -> None:
    disk = DiskConfig(UUID(int=1), UUID(int=2), tmp_path, "", "", False, False, tmp_path, group="shop")
    retention = Retention(RetentionFiles(tmp_path), SystemClock(), Policy(), lambda event, /, **facts: None)
    groups = Groups((disk,), GroupFiles(tmp_path), retention, lambda count: bytes(count), print)
    member = SimpleNamespace(config=disk, target=SimpleNamespace(lock=threading.Lock()))
    with member.target.lock:
        opening = threading.Thread(
            target=groups.make_good, args=([member], lambda disk, point: None), daemon=True
        )
        opening.start()
        opening.join(10)
        assert not opening.is_alive()
