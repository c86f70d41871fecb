"""Claims: going back to a recovery point, or exporting one, takes at most 1.43 times as long as cp takes for its bytes.

Of a disk on which every block that holds data was overwritten since. And what keeping the old contents costs the sync
that overwrites them: at most 2.2 times its time. What it writes is not read again for a content root here
(`verify_points`): that is another cost.
"""

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest

from benchmarks import images
from benchmarks.published import Report, Settings
from benchmarks.racing import HOMEWARD, Contender, command, race, same_bytes

SPEED_MIN: Final = 0.70
UNDO_MAX: Final = 2.2
FOUND: Final = 1
"""The sequence of the point that stands for what the first sync found."""


class Replica:
    """A target disk at a master target, with points to go back to or without, and the agent of its source."""

    def __init__(self, folder: Path, source: Path, *, retention: bool) -> None:
        self.folder, self.source, self.target = folder, source, folder / "target.img"
        self.item, self._disk = uuid.uuid4(), uuid.uuid4()
        self._retention = retention
        self.config = folder / "masttarget.toml"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        key = folder / "key"
        key.write_text("11" * 32)
        key.chmod(0o600)

    def found(self, content: Path) -> None:
        """The target holds `content` and nothing is known of it."""
        self.stop()
        for name in ("target.img.homeward", "retention", "state"):
            images.remove(self.folder / name)
        images.copy(content, self.target)
        (self.folder / "retention").mkdir()
        images.settle(self.source, self.target)

    def serve(self) -> None:
        """The master target listens, and the agent knows where."""
        lines = {
            "listen": "127.0.0.1:0",
            "key_file": str(self.folder / "key"),
            "state_directory": str(self.folder / "state"),
        }
        if self._retention:
            lines["retention"] = str(self.folder / "retention")
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
        self.config.write_text(
            f"[masttarget]\nretention_own_volume = false\nverify_points = false\n{text}"
            f'[[disk]]\nitem = "{self.item}"\ndisk = "{self._disk}"\npath = {json.dumps(str(self.target))}\n'
            "adopt = true\n"
        )
        self._process = subprocess.Popen(
            [str(HOMEWARD), "masttarget", "serve", "--config", str(self.config), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        port = json.loads(self._process.stdout.readline())["port"]
        (self.folder / "agent.toml").write_text(
            f'[agent]\nmasttarget = "127.0.0.1:{port}"\nkey_file = {json.dumps(str(self.folder / "key"))}\n'
            f"state_directory = {json.dumps(str(self.folder / 'agent'))}\n"
            f'item = "{self.item}"\nlanes = 1\n'
            f'[[disk]]\ndisk = "{self._disk}"\npath = {json.dumps(str(self.source))}\n'
        )

    def sync(self) -> bytes:
        """One cycle, published."""
        return command(HOMEWARD, "agent", "sync", "--config", self.folder / "agent.toml", "--json")()

    def stop(self) -> None:
        """The master target has ended in order."""
        if self._process is not None:
            self._process.terminate()
            assert self._process.wait(60) == 0
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def points(self, verb: str, *words: object) -> Callable[[], bytes]:
        """Runs a verb on the point that stands for what the first sync found."""
        return command(HOMEWARD, "points", verb, self.item, FOUND, "--config", self.config, "--json", *words)


@pytest.fixture(scope="module")
def rewritten(scratch: Path, settings: Settings) -> Iterator[images.Changes]:
    """Two images that differ in each block that holds data."""
    size = settings.image_bytes // 4 if settings.quick else settings.image_bytes
    before = images.make(scratch / "found.img", size, settings.seed)
    changes = images.change(before, scratch / "rewritten.img", settings.seed + 2, share=1.0)
    yield changes
    images.remove(changes.before.path, changes.after.path)


@pytest.fixture
def replicas(scratch: Path, rewritten: images.Changes) -> Iterator[Callable[[bool], Replica]]:
    """Makes replicas of the rewritten image, with retention or without."""
    made: list[Replica] = []

    def make(retention: bool) -> Replica:
        made.append(Replica(scratch / f"replica-{len(made)}", rewritten.after.path, retention=retention))
        return made[-1]

    yield make
    for one in made:
        one.stop()
        images.remove(one.folder)


def _copying(found: Path, copy: Path) -> Contender:
    script = 'cp --sparse=auto --reflink=never "$1" "$2" && sync -d "$2"'

    def prepare() -> None:
        images.remove(copy)
        images.settle(found)

    return Contender(
        "cp",
        "cp --sparse=auto --reflink=never A B && sync -d B",
        command("sh", "-c", script, "sh", found, copy),
        lambda _: same_bytes(found, copy),
        prepare,
    )


def bench_rollback(
    benchmark: Any,
    rewritten: images.Changes,
    replicas: Callable[[bool], Replica],
    report: Report,
    settings: Settings,
) -> None:
    """Going back in place; what is overwritten is kept, as an operator may change their mind."""
    found = rewritten.before.path
    replica = replicas(True)

    def prepare() -> None:
        replica.found(found)
        replica.serve()
        replica.sync()
        replica.stop()
        same_bytes(rewritten.after.path, replica.target)
        images.settle(replica.target, *(replica.folder / "retention").rglob("*.undo"))

    def check(answer: bytes) -> None:
        assert json.loads(answer)["disks"]
        same_bytes(found, replica.target)

    ours = Contender(
        "points rollback",
        "homeward points rollback ITEM POINT --config F --json",
        replica.points("rollback"),
        check,
        prepare,
    )
    peer = _copying(found, replica.folder / "copy.img")
    race(benchmark, settings.rounds, ours, [peer])
    _publish(report, "go back to a point, every block of data differs", "a rollback", ours, peer)


def bench_export(
    benchmark: Any,
    rewritten: images.Changes,
    replicas: Callable[[bool], Replica],
    report: Report,
    settings: Settings,
) -> None:
    """A point as a new image, while its target stays as it is."""
    found = rewritten.before.path
    replica = replicas(True)
    exported = replica.folder / "exported.raw"
    replica.found(found)
    replica.serve()
    replica.sync()
    replica.stop()

    def prepare() -> None:
        images.remove(exported)
        images.settle(replica.target, *(replica.folder / "retention").rglob("*.undo"))

    def check(answer: bytes) -> None:
        assert json.loads(answer)
        same_bytes(found, exported)

    ours = Contender(
        "points export",
        "homeward points export ITEM POINT --to B --format raw --config F --json",
        replica.points("export", "--to", exported, "--format", "raw"),
        check,
        prepare,
    )
    peer = _copying(found, replica.folder / "copy.img")
    race(benchmark, settings.rounds, ours, [peer])
    _publish(report, "export a point, every block of data differs", "an export", ours, peer)


def bench_undo(
    benchmark: Any,
    rewritten: images.Changes,
    replicas: Callable[[bool], Replica],
    report: Report,
    settings: Settings,
) -> None:
    """The same cycle with points to go back to and without: every block that it writes needs an undo record."""

    def contender(name: str, replica: Replica) -> Contender:
        def prepare() -> None:
            replica.found(rewritten.before.path)
            replica.serve()

        def check(answer: bytes) -> None:
            replica.stop()
            assert json.loads(answer)["disks"]
            same_bytes(rewritten.after.path, replica.target)

        return Contender(name, "homeward agent sync --config F --json", replica.sync, check, prepare)

    ours = contender("sync, old contents kept", replicas(True))
    peer = contender("sync, nothing kept", replicas(False))
    race(benchmark, settings.rounds, ours, [peer])
    report.command("rewrite every block of data", ours, peer)
    ratio = median(own.wall / theirs.wall for own, theirs in zip(ours.timings, peer.timings, strict=True))
    report.fact(
        "a sync that keeps all it overwrites, divided by one that keeps nothing",
        f"{ratio:.2f}",
        f"{UNDO_MAX}",
    )


def _publish(report: Report, row: str, work: str, ours: Contender, peer: Contender) -> None:
    report.command(row, ours, peer)
    ratio = median(theirs.wall / own.wall for own, theirs in zip(ours.timings, peer.timings, strict=True))
    report.fact(
        f"speed of {work}, divided by that of cp of the same bytes",
        f"{ratio:.2f}",
        f"at least {SPEED_MIN:.2f}",
    )
