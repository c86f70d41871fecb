"""The two roles in this process or in two others, wired as an administrator wires them."""

import json
import os
import re
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.config import AgentConfig, SourceConfig
from agent.main import Agent
from agent.report import SyncReport
from disks.disk import Format
from drcore.errors import HomewardError
from masttarget.config import DiskConfig, MasttargetConfig
from masttarget.main import Master
from tests.system.command import Outcome, ended, start, wait_until


@dataclass(frozen=True, slots=True)
class Pair:
    """A source and its target; formats may be empty (recognised)."""

    source: Path
    target: Path
    source_format: str = ""
    target_format: str = ""
    create: str = ""
    adopt: bool = True
    allow_larger: bool = False
    disk: uuid.UUID = field(default_factory=uuid.uuid4)


@contextmanager
def at_work(master: Master) -> Iterator[int]:
    """The master target runs in a thread of this process; its port."""
    thread = threading.Thread(target=master.run, name="master")
    thread.start()
    try:
        yield master.address[1]
    finally:
        master.stop()
        thread.join(60)
        assert not thread.is_alive()


class Site:
    """An item with its disks, a key, and the settings of both roles in a folder."""

    def __init__(self, folder: Path, *pairs: Pair) -> None:
        self.folder = folder
        self.item = uuid.uuid4()
        self.pairs = list(pairs)
        self.key = folder / "key"
        write_key(self.key, b"k" * 32)
        self.log: list[tuple[str, dict[str, object]]] = []

    def masttarget(self) -> MasttargetConfig:
        disks = tuple(
            DiskConfig(
                item=self.item,
                disk=pair.disk,
                path=pair.target,
                format=pair.target_format,
                create=pair.create,
                allow_larger=pair.allow_larger,
                adopt=pair.adopt,
                journal=self.journal(pair),
            )
            for pair in self.pairs
        )
        return MasttargetConfig("127.0.0.1", 0, self.key, self.folder, disks)

    def journal(self, pair: Pair) -> Path:
        if pair.target.is_block_device():
            return self.folder / f"{pair.disk}.homeward"
        return pair.target.with_name(pair.target.name + ".homeward")

    def agent(self, port: int) -> AgentConfig:
        disks = tuple(
            SourceConfig(pair.disk, pair.source, Format(pair.source_format) if pair.source_format else None)
            for pair in self.pairs
        )
        return AgentConfig("127.0.0.1", port, self.key, self.folder / "agent", self.item, disks)

    @contextmanager
    def listening(self) -> Iterator[int]:
        """A master target in this process; its port."""

        def note(event: str, /, **facts: object) -> None:
            self.log.append((event, facts))

        with at_work(Master(self.masttarget(), note)) as port:
            yield port

    def sync(self, port: int, **changes: Any) -> SyncReport:
        """One cycle by an agent in this process."""
        return Agent(replace(self.agent(port), **changes), no_retry).run()

    def settled(self) -> None:
        """The master target in this process has closed the disks of every session that is over."""

        def count(wanted: str) -> int:
            return sum(event == wanted for event, _ in self.log)

        wait_until(lambda: count("session began") == count("session ended"))

    # As two processes

    def write_masttarget(self, **extra: str) -> Path:
        """The settings file of the master target; `extra` keys go into [masttarget] as TOML text."""
        lines = [
            "[masttarget]",
            'listen = "127.0.0.1:0"',
            f"key_file = {json.dumps(str(self.key))}",
            f"state_directory = {json.dumps(str(self.folder / 'masttarget'))}",
            *(f"{name} = {value}" for name, value in extra.items()),
        ]
        for pair in self.pairs:
            lines += [
                "[[disk]]",
                f'item = "{self.item}"',
                f'disk = "{pair.disk}"',
                f"path = {json.dumps(str(pair.target))}",
                f'format = "{pair.target_format}"',
                f'create = "{pair.create}"',
                f"adopt = {json.dumps(pair.adopt)}",
                f"allow_larger = {json.dumps(pair.allow_larger)}",
            ]
        return _write(self.folder / "masttarget.toml", lines)

    def write_agent(self, port: int, name: str = "agent", **extra: str) -> Path:
        """The settings file of the agent; `extra` keys go into [agent] as TOML text."""
        keys = {"reconnects": "0", **extra}
        lines = [
            "[agent]",
            f'masttarget = "127.0.0.1:{port}"',
            f"key_file = {json.dumps(str(self.key))}",
            f"state_directory = {json.dumps(str(self.folder / name))}",
            f'item = "{self.item}"',
            *(f"{key} = {value}" for key, value in keys.items()),
        ]
        for pair in self.pairs:
            lines += ["[[disk]]", f'disk = "{pair.disk}"', f"path = {json.dumps(str(pair.source))}"]
            if pair.source_format:
                lines.append(f'format = "{pair.source_format}"')
        return _write(self.folder / f"{name}.toml", lines)

    @contextmanager
    def serving(self, *options: str) -> Iterator[int]:
        """`masttarget serve` as a process of its own; its port. It ends in order afterwards."""
        process = start("masttarget", "serve", "--config", self.write_masttarget(), "--json", *options)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, ended(process)
            yield int(json.loads(line)["port"])
        finally:
            process.terminate()
            self.served = ended(process)
        assert "Traceback" not in self.served.stderr, self.served.stderr

    served: Outcome | None = None


class Kept(Site):
    """A site whose master target keeps points, and tells how its disks are doing."""

    retention: Path | None = None
    """In place of a directory beside the disks."""

    def masttarget(self) -> MasttargetConfig:
        return replace(
            super().masttarget(),
            retention=self.retention or self.folder / "retention",
            retention_own_volume=False,
            rpo_seconds=900.0,
            metrics=("127.0.0.1", 0),
        )

    def health(self) -> list[str]:
        """Of each disk, as a scrape tells it now."""
        url = next(str(facts["url"]) for event, facts in reversed(self.log) if event == "metrics")
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = [re.fullmatch(r'homeward_disk_health{.*state="(\w+)".*} 1.0', line) for line in lines]
        return [one[1] for one in found if one is not None]


def no_retry(error: HomewardError, wait: float) -> None:
    raise AssertionError(f"a retry nobody asked for: {error}")


def write_key(path: Path, content: bytes, mode: int = 0o600) -> None:
    path.write_bytes(content)
    os.chmod(path, mode)


def _write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join([*lines, ""]))
    return path
