"""The verbs of the two roles that need no session: take disks, tell what is kept of them, read them again."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from agent.errors import Stopped
from drcore.errors import HomewardError
from homeward import show
from homeward.status import status_option, telling
from homeward.stopping import Interrupt

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    required=True,
    help="The settings file (TOML).",
)


@click.command("prove")
@config_option
@status_option
@json_option
def prove_source(config_path: Path, status: Path | None, as_json: bool) -> None:
    """Reads the sources again in full and prints their content roots."""
    from agent import config as settings
    from agent.main import Agent

    role = Agent(settings.load(config_path), lambda error, wait: None)

    def standing() -> show.Standing:
        now = role.progress
        return show.Standing(
            now.scanned_bytes, now.total_bytes, now.scanned_bytes, "reading the source again"
        )

    _prove(role.prove, role.stop, standing, status, as_json)


@click.command("prove")
@config_option
@status_option
@json_option
def prove_target(config_path: Path, status: Path | None, as_json: bool) -> None:
    """Reads the targets again in full, past the cache, and prints their content roots."""
    from masttarget import offline
    from masttarget.adapters.files import LocalStore

    found = _masttarget(config_path)
    stopped = False
    seen = (0, 0)

    def stop() -> None:
        nonlocal stopped
        stopped = True

    def on_bytes(done: int, total: int) -> None:
        nonlocal seen
        if stopped:
            raise Stopped()
        seen = (done, total)

    def standing() -> show.Standing:
        return show.Standing(seen[0], seen[1], seen[0], "reading the target again")

    def run() -> tuple[Any, ...]:
        return offline.prove(found.disks, LocalStore(found.state_directory), on_bytes)

    _prove(run, stop, standing, status, as_json)


def _prove(
    run: Callable[[], tuple[Any, ...]],
    stop: Callable[[], None],
    standing: Callable[[], show.Standing],
    status: Path | None,
    as_json: bool,
) -> None:
    began = time.monotonic()
    with Interrupt(stop), show.progress(standing), telling(status, standing):
        found = run()
    seconds = round(time.monotonic() - began, 3)
    disks = [{"disk": each.disk, "size": each.size, "content_root": each.root} for each in found]
    if as_json:
        show.answer_json({"disks": disks, "seconds": seconds})
        return
    for disk in disks:
        show.answer(f"disk {disk['disk']}, {show.size(disk['size'])}: content root {disk['content_root']}")
    show.answer(f"read again in {show.duration(seconds)}")


@click.command("adopt")
@config_option
@click.option(
    "--generation",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Agents with an older generation of the item are refused from now on.",
)
@json_option
def adopt(config_path: Path, generation: int, as_json: bool) -> None:
    """Takes the configured disks as targets, durably, and fences off agents of older generations."""
    from masttarget import offline
    from masttarget.adapters.files import LocalStore

    found = _masttarget(config_path)
    _show_records(offline.adopt(found.disks, generation, LocalStore(found.state_directory)), as_json)


@click.command("show")
@config_option
@json_option
def show_disks(config_path: Path, as_json: bool) -> None:
    """Shows what the journal of each configured disk holds; opens no disk."""
    from masttarget import offline
    from masttarget.adapters.files import LocalStore

    found = _masttarget(config_path)
    newest = _newest(found.retention) if found.retention is not None else lambda disk: ""
    _show_records(offline.show(found.disks, LocalStore(found.state_directory), newest), as_json)


def _newest(retention: Path) -> Callable[[Any], str]:
    """Answers the newest point of a disk; none where the list cannot be read, which the verbs of points tell."""
    from masttarget.adapters.retention_files import RetentionFiles
    from masttarget.points import Points

    def newest(disk: Any) -> str:
        points = Points(RetentionFiles(retention).points(disk.item.bytes), disk.item.hex)
        with suppress(HomewardError):
            points.load()
        return next(
            (point.id for point in reversed(list(points)) if point.disk(disk.disk.hex) is not None), ""
        )

    return newest


def _masttarget(path: Path) -> Any:
    from masttarget import config as settings
    from masttarget.main import check

    found = settings.load(path)
    check(found, path)
    return found


def _show_records(records: tuple[Any, ...], as_json: bool) -> None:
    if as_json:
        disks = [
            {
                "disk": each.disk,
                "path": each.path,
                "generation": each.generation,
                "session": each.session,
                "point": each.point or None,
                "open_cycle": each.open_cycle,
            }
            for each in records
        ]
        show.answer_json({"disks": disks})
        return
    for each in records:
        show.answer(f"disk {each.disk} at {each.path}")
        cycle = ", a cycle is open" if each.open_cycle else ""
        show.answer(f"  generation {each.generation}, session {each.session}{cycle}")
        show.answer(f"  last point {each.point or 'none'}")


AGENT_VERBS = (prove_source,)
MASTTARGET_VERBS = (adopt, show_disks, prove_target)
