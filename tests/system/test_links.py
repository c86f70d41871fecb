"""Lanes that come and go: by a script on loopback, and by what they bring on a line that loses packets."""

import itertools
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agent import crew, sync
from agent.lanes import LANES_FAR, Seen
from agent.main import Agent
from agent.references import Outlook
from benchmarks.links import lab
from benchmarks.links.transfer import send
from tests.system.command import ended, judge, start, wait_until, write_sparse
from tests.system.roles import Pair, Site, no_retry
from wireproto.messages import DiskTotals

MIB = 1024 * 1024


class ScriptedCount:
    """Wants these numbers of lanes, one after the other, whatever is seen."""

    script = (1, 5, 2, 16, 1, 3)
    reached: ClassVar[set[int]] = set()

    def __init__(self, now: float, round_trip: float) -> None:
        self._wanted = itertools.cycle(self.script)
        self.wanted = next(self._wanted)

    def observe(self, now: float, seen: Seen) -> int:
        if seen.lanes == self.wanted:
            self.reached.add(self.wanted)
            self.wanted = next(self._wanted)
        return self.wanted

    def refused(self, lanes: int) -> None:
        raise AssertionError(f"a lane was refused beside {lanes}")


def test_lanes_come_and_go_while_everything_arrives(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "LaneCount", ScriptedCount)
    monkeypatch.setattr(crew, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(sync, "HEARTBEAT_SECONDS", 0.001)  # it may fall into every moment of a lane
    content = bytearray(dice.randbytes(16 * MIB))
    content[5 * MIB : 7 * MIB] = bytes(2 * MIB)
    source = write_sparse(tmp_path / "source.raw", content)
    target = tmp_path / "target.raw"
    site = Site(tmp_path, Pair(source, target, create="raw"))
    with site.listening() as port:
        report = site.sync(port, lanes=0, bandwidth=8 * MIB)
        site.settled()
    judge(target, "raw", source)
    assert report.lanes > 1
    assert report.bytes_sent > 14 * MIB
    assert len(ScriptedCount.reached) >= 3, "lanes came and went"
    told = [event for event, _ in site.log]
    assert told[:2] == ["session began", "point published"], "no lane was missed before"


def test_frames_that_arrive_after_the_agent_counted_make_it_count_anew(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent again overtakes the commit where it takes another lane; here the first count lacks one frame."""
    counted: list[DiskTotals] = []

    def early(frames: int, plain_bytes: int, root: bytes) -> DiskTotals:
        counted.append(DiskTotals(frames - (not counted), plain_bytes, root))
        return counted[-1]

    monkeypatch.setattr(sync, "DiskTotals", early)
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(3 * MIB))
    site = Site(tmp_path, Pair(source, tmp_path / "target.raw", create="raw"))
    with site.listening() as port:
        site.sync(port)
        site.settled()
    judge(tmp_path / "target.raw", "raw", source)
    assert [total.frames - counted[0].frames for total in counted] == [0, 1]


def test_what_is_worth_an_index_is_weighed_at_the_bandwidth_of_now(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float | None] = []

    def weighed(rate: float | None, *facts: Any) -> Outlook:
        if not rates:
            agent.set_bandwidth(80_000_000)
        rates.append(rate)
        return Outlook(rate, *facts)

    monkeypatch.setattr(sync, "Outlook", weighed)
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(3 * MIB))
    target = write_sparse(tmp_path / "target.raw", dice.randbytes(3 * MIB))
    site = Site(tmp_path, Pair(source, target))
    with site.listening() as port:
        agent = Agent(replace(site.agent(port), bandwidth=50_000_000), no_retry)
        agent.run()
        site.settled()
    assert rates[0] == 50_000_000
    assert set(rates[1:]) == {80_000_000}
    judge(target, "raw", source)


def test_a_hangup_has_the_bandwidth_read_again_while_lanes_send(tmp_path: Path, dice: random.Random) -> None:
    """At the first rate the cycle would take 336 seconds. Settings that cannot be read change nothing."""
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(32 * MIB))
    target = tmp_path / "target.raw"
    site = Site(tmp_path, Pair(source, target, create="raw"))
    with site.serving() as port:
        settings = site.write_agent(port, bandwidth='"100k"', lanes="16")
        began = time.monotonic()
        process = start("agent", "sync", "--json", "--config", settings)
        wait_until(lambda: target.exists() and target.stat().st_blocks > 0)
        assert time.monotonic() - began < 10, "the first frame is a short one"
        text = settings.read_text()
        settings.write_text(text.replace('"100k"', '"swift"'))
        os.kill(process.pid, signal.SIGHUP)
        time.sleep(0.3)
        settings.write_text(text.replace('"100k"', '"80M"'))
        os.kill(process.pid, signal.SIGHUP)
        outcome = ended(process)
    assert outcome.answer()["lanes"] == 16
    assert "swift" in outcome.stderr
    assert time.monotonic() - began < 25
    judge(target, "raw", source)


def test_a_line_that_loses_packets_is_crossed_on_many_lanes(tmp_path: Path, dice: random.Random) -> None:
    """Where links cannot be built, the laboratory says so in a sentence, which is all that is tested there."""
    reason = lab.missing()
    if reason is not None:
        assert reason.endswith(".")
        return
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(8 * MIB))
    line = lab.Line(100, 40, 0.002)
    with lab.built(line, tmp_path, congestion="reno", seed=dice.randrange(2**32)) as link:
        found = send(link, source, tmp_path)
    assert found.wire_bytes > 8 * MIB
    assert found.lanes >= LANES_FAR
    assert found.rate < line.bytes_a_second, "the line is as narrow as it says"
