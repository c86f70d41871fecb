"""The comparison: with an honest master target its orders make the target equal, and equal regions cost nothing."""

import random
import tempfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from _native import compare
from agent.descent import ASKS_MAX, Ask, Clear, Descent, Ship
from disks.digestmap import DigestMap
from disks.scan import RegionRun
from drcore.units import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    REGION_BLOCKS,
    SPAN_BLOCKS,
    ZERO_DIGEST,
    bit_runs,
)
from wireproto.errors import MessageRefused
from wireproto.messages import EMPTY, Differ, Scanned

SECRET = bytes(range(192))
FOLDER = Path(tempfile.gettempdir())


def map_of(blocks: list[bytes]) -> DigestMap:
    found = DigestMap(len(blocks) * BLOCK_BYTES, FOLDER)
    found.write(0, b"".join(blocks))
    return found


def runs_of(digests: DigestMap, *, merged: bool) -> list[RegionRun]:
    """As a scan tells them: zero regions perhaps merged into one run."""
    out: list[RegionRun] = []
    for region in range(digests.regions):
        found = digests.region(region, SECRET)
        if found == ZERO_DIGEST and merged and out and out[-1].digest is None:
            out[-1] = RegionRun(out[-1].first, out[-1].count + 1, None)
        else:
            out.append(RegionRun(region, 1, None if found == ZERO_DIGEST else found))
    return out


@dataclass
class World:
    """A descent, an honest master target, and a model of its disk to which the orders are applied."""

    source: DigestMap
    target: DigestMap
    dice: random.Random
    asked: list[Ask] = field(default_factory=list)
    shipped: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.descent = Descent(self.source, SECRET)
        self.questions: deque[Ask] = deque()
        self.model = bytearray(self.target.read(0, self.target.blocks))

    def answer(self, ask: Ask) -> Differ:
        first = ask.node * SPAN_BLOCKS
        own = (
            self.target.read(first, min(SPAN_BLOCKS, self.target.blocks - first))
            if ask.level == 1
            else self.target.spans_of(ask.node, SECRET)
        )
        differing = compare.differing(own, ask.digests)
        zero = compare.zeroes(own) & differing
        wanted = differing & ~zero & ~compare.zeroes(ask.digests)
        sectors = memoryview(self.dice.randbytes(256 * wanted.bit_count())) if ask.level == 1 else EMPTY
        return Differ(ask.level, ask.node, differing, zero, sectors)

    def follow(self) -> None:
        """Every order that can be given now is applied."""
        while (order := self.descent.next()) is not None:
            match order:
                case Ask():
                    self.asked.append(order)
                    self.questions.append(order)
                    assert len(self.questions) <= ASKS_MAX
                case Clear(first, count):
                    assert count > 0
                    self.model[first * DIGEST_BYTES : (first + count) * DIGEST_BYTES] = bytes(
                        count * DIGEST_BYTES
                    )
                case Ship():
                    self.ship(order)

    def ship(self, order: Ship) -> None:
        assert order.blocks
        assert order.patched & order.fresh == 0
        assert (order.patched | order.fresh) & ~order.blocks == 0
        assert len(order.sectors) == 256 * order.patched.bit_count()
        for start, count in bit_runs(order.blocks):
            for bit in range(start, start + count):
                block = order.span * SPAN_BLOCKS + bit
                own = self.source.read(block, 1)
                held = self.target.read(block, 1)
                assert own not in (ZERO_DIGEST, held), "sent for nothing"
                assert (order.fresh >> bit & 1) == (held == ZERO_DIGEST)
                self.shipped[block] = self.shipped.get(block, 0) + 1
                self.model[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES] = own

    def run(self) -> None:
        """Both scans are told and all questions answered, interleaved at random."""
        source = deque(runs_of(self.source, merged=self.dice.random() < 0.5))
        target = deque(runs_of(self.target, merged=self.dice.random() < 0.5))
        while source or target or self.questions:
            step = self.dice.randrange(3)
            if step == 0 and source:
                self.descent.source_scanned(source.popleft())
            elif step == 1 and target:
                run = target.popleft()
                digests = EMPTY if run.digest is None else memoryview(run.digest)
                self.descent.target_scanned(Scanned(run.first, run.count, digests))
            elif step == 2 and self.questions:
                at = self.dice.randrange(len(self.questions))
                ask = self.questions[at]
                del self.questions[at]
                self.descent.answered(self.answer(ask))
            self.follow()


contents = st.sampled_from([ZERO_DIGEST, b"a" * 16, b"b" * 16, b"c" * 16])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Maps of up to three regions, mostly runs, with differences here and there."""
    blocks = draw(st.sampled_from([1, 63, 65, REGION_BLOCKS, REGION_BLOCKS + 1, 2 * REGION_BLOCKS + 700]))

    def content() -> list[bytes]:
        return [draw(contents)] * blocks

    source = content()
    target = list(source) if draw(st.booleans()) else content()
    for side in (source, target):
        for _ in range(draw(st.integers(0, 4))):
            start = draw(st.integers(0, blocks - 1))
            count = draw(st.sampled_from([1, 2, SPAN_BLOCKS, 1000, REGION_BLOCKS]))
            side[start : start + count] = [draw(contents)] * len(side[start : start + count])
    return World(map_of(source), map_of(target), random.Random(draw(st.integers())))


@settings(deadline=None, max_examples=60)
@given(worlds())
def test_orders_make_the_target_equal_and_cost_only_what_differs(world: World) -> None:
    world.run()
    assert world.descent.settled
    assert world.descent.compared_regions == world.source.regions
    assert bytes(world.model) == world.source.read(0, world.source.blocks)
    assert set(world.shipped.values()) <= {1}
    for ask in world.asked:
        region = ask.node if ask.level == 2 else ask.node // 64
        assert world.source.region(region, SECRET) != world.target.region(region, SECRET)
        if ask.level == 1:
            first = ask.node * SPAN_BLOCKS
            count = min(SPAN_BLOCKS, world.source.blocks - first)
            assert world.source.read(first, count) != world.target.read(first, count)
    assert len({(ask.level, ask.node) for ask in world.asked}) == len(world.asked)


def test_not_more_questions_than_the_limit_wait_for_answers() -> None:
    """All spans of two regions differ, and nobody answers at first."""
    blocks = 2 * REGION_BLOCKS
    world = World(map_of([b"a" * 16] * blocks), map_of([b"b" * 16] * blocks), random.Random(1))
    for run in runs_of(world.source, merged=False):
        world.descent.source_scanned(run)
    for run in runs_of(world.target, merged=False):
        assert run.digest is not None
        world.descent.target_scanned(Scanned(run.first, 1, memoryview(run.digest)))
    world.follow()
    for _ in range(2):  # both regions' own questions
        world.descent.answered(world.answer(world.questions.popleft()))
    world.follow()
    assert len(world.questions) == ASKS_MAX
    assert not world.descent.settled
    while world.questions:
        world.descent.answered(world.answer(world.questions.popleft()))
        world.follow()
    assert world.descent.settled


def test_regions_that_are_zero_on_both_sides_are_passed_in_one_step() -> None:
    digests = DigestMap(1 << 44, FOLDER, in_memory_max=0)
    descent = Descent(digests, SECRET)
    descent.source_scanned(RegionRun(0, digests.regions, None))
    descent.target_scanned(Scanned(0, digests.regions, EMPTY))
    assert descent.next() is None
    assert descent.settled
    digests.close()


def test_an_empty_target_gets_what_may_hold_data_without_a_comparison() -> None:
    blocks = 3 * SPAN_BLOCKS + 5
    runs = [(0, 2), (10, SPAN_BLOCKS + 1), (SPAN_BLOCKS + 3, SPAN_BLOCKS + 4), (3 * SPAN_BLOCKS, blocks)]
    descent = Descent(map_of([ZERO_DIGEST] * blocks), SECRET)
    descent.fill((start * BLOCK_BYTES, end * BLOCK_BYTES) for start, end in runs)
    ordered: list[tuple[int, int]] = []
    while (order := descent.next()) is not None:
        assert isinstance(order, Ship)
        assert (order.unread, order.patched, order.fresh) == (True, 0, order.blocks)
        ordered += [(order.span * SPAN_BLOCKS + first, count) for first, count in bit_runs(order.blocks)]
    assert len({first // SPAN_BLOCKS for first, _ in ordered}) == 3
    covered = [block for first, count in ordered for block in range(first, first + count)]
    assert covered == [block for start, end in runs for block in range(start, end)]
    assert not descent.settled, "the master target has not told its digests"
    descent.target_scanned(Scanned(0, descent._digests.regions, EMPTY))
    assert descent.next() is None
    assert descent.settled


def test_blocks_that_did_not_add_up_are_sent_whole() -> None:
    descent = Descent(map_of([b"a" * 16] * 130), SECRET)
    descent.mismatched((0, 129))
    assert descent.next() == Ship(0, 1, 0, 0, b"")
    assert descent.next() == Ship(2, 1 << 1, 0, 0, b"")
    with pytest.raises(MessageRefused):
        descent.mismatched((130,))


def test_what_a_master_target_may_not_say() -> None:
    world = World(map_of([b"a" * 16] * 100), map_of([b"b" * 16] * 100), random.Random(1))
    descent = world.descent
    digest = memoryview(b"x" * 16)
    for told in (Scanned(1, 1, digest), Scanned(0, 2, EMPTY)):
        with pytest.raises(MessageRefused):
            descent.target_scanned(told)
    descent.source_scanned(runs_of(world.source, merged=False)[0])
    descent.target_scanned(Scanned(0, 1, digest))
    with pytest.raises(MessageRefused):
        descent.target_scanned(Scanned(0, 1, digest))
    with pytest.raises(MessageRefused):
        descent.answered(Differ(2, 0, 1, 0, EMPTY))
    assert isinstance(descent.next(), Ask)
    with pytest.raises(MessageRefused):
        descent.answered(Differ(2, 0, 0b100, 0, EMPTY))  # a third span of two


def test_an_answer_at_the_lowest_level_has_to_fit_its_sectors() -> None:
    for answer in (
        Differ(1, 0, 0b1, 0, EMPTY),
        Differ(1, 0, 0, 0, memoryview(bytes(256))),
        Differ(1, 0, 1 << 40, 1 << 40, EMPTY),
    ):
        world = World(map_of([b"a" * 16] * 40), map_of([b"b" * 16] * 40), random.Random(1))
        world.descent.source_scanned(runs_of(world.source, merged=False)[0])
        world.descent.target_scanned(Scanned(0, 1, memoryview(b"x" * 16)))
        world.follow()
        world.descent.answered(world.answer(world.questions.popleft()))
        world.follow()
        assert [ask.level for ask in world.asked] == [2, 1]
        with pytest.raises(MessageRefused):
            world.descent.answered(answer)
