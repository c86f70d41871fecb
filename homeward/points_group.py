"""`homeward points` and `homeward masttarget verify`: what can be gone back to, and going there."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drcore.units import BLOCK_BYTES, counted
from homeward import show
from homeward.stopping import Interrupt

if TYPE_CHECKING:
    from masttarget.config import DiskConfig, MasttargetConfig
    from masttarget.points import Point
    from masttarget.retention import ItemRetention

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
plan_option = click.option("--plan", is_flag=True, help="Only tell what would be done; touches nothing.")
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    envvar="HOMEWARD_MASTTARGET_CONFIG",
    help="The settings of the master target (TOML).",
)
item_argument = click.argument("item", type=click.UUID)
point_argument = click.argument("point")
disk_option = click.option("--disk", default="", help="The disk's UUID, where the item has several.")
NO = 1
_CONTAINERS = (".vmdk", ".vhd", ".vhdx", ".qcow2")
_VERIFIED = {
    "full": ", all of it read again",
    "written": ", what was written read again",
    None: ", to be held against by points verify",
}


@dataclass(slots=True)
class Desk:
    """An item of a master target: its disks, its retention, and what they need."""

    disks: "tuple[DiskConfig, ...]"
    item: "ItemRetention"
    store: Any
    secret: bytes


def _settings(
    config: Path, item: uuid.UUID, *, lost: bool = False
) -> "tuple[MasttargetConfig, tuple[DiskConfig, ...]]":
    """The settings, with a retention, and the item's disks; `lost`: also where its volume is not mounted.

    Errors: `ConfigRefused`, `UnknownItem`, `RetentionOff` (HW-MT-044), `RetentionRefused` (038).
    """
    from masttarget import config as settings
    from masttarget.errors import UnknownItem
    from masttarget.errors_retention import RetentionOff

    found = settings.load(config)
    disks = tuple(disk for disk in found.disks if disk.item == item)
    if not disks:
        raise UnknownItem(item=item.hex)
    if found.retention is None:
        raise RetentionOff(path=str(config))
    if not lost:
        _check_mounted(found)
    return found, disks


def _check_mounted(found: "MasttargetConfig") -> None:
    """Nobody takes an empty mount point for a retention without points. Errors: `RetentionRefused` (HW-MT-038)."""
    from masttarget.adapters.volumes import volume_of
    from masttarget.volume import check_mounted

    if found.retention is not None and found.retention_own_volume:
        check_mounted(volume_of(found.retention, found))


def _desk(config: Path, item: uuid.UUID) -> Desk:
    """Errors: those of `_settings`, and of the list of points."""
    from drcore.clock import SystemClock
    from drcore.secret import read_key_file
    from homeward.logs import log_to_stderr
    from masttarget.adapters.files import LocalStore
    from masttarget.adapters.retention_files import RetentionFiles
    from masttarget.retention import Policy, Retention
    from wireproto.keys import digest_secret

    found, disks = _settings(config, item)
    assert found.retention is not None
    retention = Retention(
        RetentionFiles(found.retention),
        SystemClock(),
        Policy.of(found.retention_seconds, found.retention_ladder),
        log_to_stderr(),
    )
    secret = digest_secret(read_key_file(found.key_file), item.bytes).reveal()
    return Desk(disks, retention.item(item.bytes), LocalStore(found.state_directory), secret)


@contextmanager
def _stoppable(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Something long that shows how far it is, and that Ctrl-C ends in order (`Stopped`)."""
    from agent.errors import Stopped

    stopped, reached = Interrupt(), [0]

    def on_bytes(position: int) -> None:
        reached[0] = position
        if stopped.asked:
            raise Stopped()

    with stopped, show.progress(lambda: show.Standing(reached[0], total, reached[0], label)):
        yield on_bytes


def _point(point: "Point") -> dict[str, Any]:
    return {
        "id": point.id,
        "sequence": point.sequence,
        "time": point.time,
        "kind": point.kind.value,
        "base": point.base_cycle if point.base_cycle >= 0 else None,
        "disks": [
            {
                "disk": one.disk,
                "virtual_size": one.data_bytes,
                "root": one.root or None,
                "content_root": one.content_root or None,
                "verified": one.verified or None,
            }
            for one in point.disks
        ],
    }


@click.group()
def points() -> None:
    """Recovery points: list them, prove them, go back to them, read from them."""


@points.command("list")
@item_argument
@click.option("--check", is_flag=True, help="Read the whole journal: flipped bits are found, too.")
@config_option
@json_option
@click.pass_obj
def list_points(run: Any, item: uuid.UUID, check: bool, config: Path, as_json: bool) -> None:
    """Lists an item's points, the oldest first, and tells which of them cannot be used.

    What is missing or cut of the journal is seen at once; to see a flipped bit all of it has to be read (--check; exit
    1: something is wrong with it).
    """
    from masttarget.reading_points import standings, unusable

    desk = _desk(config, item)
    journals = standings(desk.item, desk.disks, desk.store, whole=check)
    found = []
    lost = any(one.points_from is None for one in journals.values())
    for point in desk.item.points:
        reason = unusable(point, journals)
        lost = lost or reason is not None
        usable = {"usable": reason is None, "reason": reason.code if reason is not None else None}
        found.append({**_point(point), **usable})
    errors = [error for one in journals.values() for error in one.errors] if lost else []
    run.exit_code = NO if check and lost else run.exit_code
    for error in errors:
        show.say(str(error))
    if as_json:
        told = [error.as_json() for error in errors]
        show.answer_json({"item": item.hex, "points": found, "errors": told})
        return
    if not found:
        show.answer("no points")
        return
    show.answer(f"{'POINT':>6}  {'TIME':<{len(found[0]['time'])}}  {'KIND':<16}  ID")
    for one in found:
        show.answer(
            f"{one['sequence']:>6}  {one['time']}  {one['kind']:<16}  {one['id']}"
            + _again(one["base"])
            + ("" if one["usable"] else f"  cannot be used ({one['reason']})")
        )


def _again(base: int | None) -> str:
    return f"  (point {base} again)" if base is not None else ""


@points.command("show")
@item_argument
@point_argument
@config_option
@json_option
def show_point(item: uuid.UUID, point: str, config: Path, as_json: bool) -> None:
    """Shows the point that POINT means.

    POINT is latest, latest-processed, latest-app-consistent, a number, an id, or a time (RFC 3339).
    """
    found = _point(_desk(config, item).item.points.choose(point))
    if as_json:
        show.answer_json(found)
        return
    show.answer(f"point {found['sequence']}, {found['kind']}, {found['time']}" + _again(found["base"]))
    for disk in found["disks"]:
        show.answer(
            f"disk {disk['disk']}  {show.size(disk['virtual_size'])}  root {disk['root'] or 'unknown'}"
        )
        if disk["content_root"]:
            show.answer(f"  content root {disk['content_root']}{_VERIFIED[disk['verified']]}")


@points.command()
@item_argument
@point_argument
@config_option
@json_option
def verify(item: uuid.UUID, point: str, config: Path, as_json: bool) -> None:
    """Reads every disk of a point from end to end and holds it against the recorded roots."""
    from masttarget.reading_points import choose_disk, prove, viewing

    desk = _desk(config, item)
    found = desk.item.points.choose(point)
    proofs = []
    for one in found.disks:
        disk = choose_disk(desk.disks, found, one.disk)
        with (
            viewing(desk.item, found, disk, desk.store) as view,
            _stoppable(view.size, "reading the point") as on_bytes,
        ):
            proofs.append(prove(view, found, one.disk, desk.secret, on_bytes))
    if as_json:
        show.answer_json(
            {
                "id": found.id,
                "disks": [
                    {
                        "disk": proof.disk,
                        "root": proof.root,
                        "content_root": proof.content_root,
                        "recorded": bool(proof.known),
                    }
                    for proof in proofs
                ],
            }
        )
        return
    for proof in proofs:
        word = "reads as it did" if proof.known else "can be read; no root was recorded for it"
        show.answer(f"disk {proof.disk} {word}")


@points.command()
@item_argument
@point_argument
@config_option
@plan_option
@json_option
def rollback(item: uuid.UUID, point: str, config: Path, plan: bool, as_json: bool) -> None:
    """Brings an item's target disks back to a point, in place. Going back can itself be taken back."""
    from masttarget.going_back import go_back, most_blocks

    desk = _desk(config, item)
    to = desk.item.points.choose(point)
    if plan:
        most = most_blocks(desk.disks, to, desk.item, desk.store)
        steps = [
            "where no point holds what the disks hold now, make it one (before-rollback)",
            "raise the generation: older agents are refused, the next session compares",
            *(
                f"write what differs to disk {disk}: at most {show.counted(blocks, 'block')} of 64 KiB, "
                f"{show.size(blocks * BLOCK_BYTES)}"
                for disk, blocks in most.items()
            ),
            f"publish a point with the content of point {to.sequence}, of the same kind ({to.kind.value})",
        ]
        _plan(steps, as_json, to=to.sequence, blocks_most=sum(most.values()))
        return
    total = max(one.data_bytes for one in to.disks)
    newest = desk.item.points.last_sequence
    with _stoppable(total, "going back") as on_bytes:
        gone = go_back(desk.disks, to, desk.item, desk.store, on_bytes)
    # Where the last cycle's point held what the disks held, the rollback made none of its own.
    made = gone.point.sequence > newest
    before = gone.before or desk.item.points.by_sequence(gone.point.sequence - 1) if made else None
    disks = [
        {"disk": name, "blocks_changed": one.blocks_changed, "bytes_written": one.bytes_written}
        for name, one in gone.disks.items()
    ]
    done = {
        "point": gone.point.id,
        "sequence": gone.point.sequence,
        "back_to": to.sequence,
        "before": before.sequence if before is not None else None,
        "generation": gone.generation,
        "disks": disks,
    }
    if as_json:
        show.answer_json(done)
        return
    for name, one in gone.disks.items():
        show.answer(
            f"disk {name} holds what it held at point {to.sequence} ({to.time}): "
            f"{show.counted(one.blocks_changed, 'block')} of 64 KiB written"
        )
    show.answer(f"done: point {gone.point.sequence} stands for it" + ("" if made else ", as before"))
    show.answer(
        f"the next agent needs generation = {gone.generation} in its settings: an older one is refused (HW-MT-008)"
    )
    if before is not None:
        show.answer(f"to take it back: homeward points rollback {item} {done['before']} --config {config}")


@points.command()
@item_argument
@point_argument
@click.option("--to", type=click.Path(path_type=Path), required=True, help="The image to be made.")
@click.option("--format", "kind", help="Its format; without it raw, unless the name tells of another one.")
@disk_option
@config_option
@plan_option
@json_option
def export(
    item: uuid.UUID,
    point: str,
    to: Path,
    kind: str | None,
    disk: str,
    config: Path,
    plan: bool,
    as_json: bool,
) -> None:
    """Makes a new image of a disk as it was at a point, while replication goes on."""
    from disks.disk import CREATED, Format
    from masttarget.errors_retention import ExportExists
    from masttarget.reading_points import choose_disk, export_to, viewing

    if kind is None and to.suffix.lower() in _CONTAINERS:
        reason = f"{to} would not be read as the raw image that it were; name its format"
        raise click.BadParameter(reason, param_hint="--format")
    kind = kind or Format.RAW.value
    made = [one.value for one in (*CREATED, Format.VMDK_STREAM_OPTIMIZED)]
    if kind not in made:
        raise click.BadParameter(f"{kind} is never made; one of {', '.join(made)}", param_hint="--format")
    desk = _desk(config, item)
    found = desk.item.points.choose(point)
    chosen = choose_disk(desk.disks, found, disk)
    if plan:
        if os.path.lexists(to):
            raise ExportExists(path=str(to))
        _plan([f"make {to} ({kind}) with disk {chosen.disk} as of {found.time}"], as_json, to=found.sequence)
        return
    with (
        viewing(desk.item, found, chosen, desk.store) as view,
        _stoppable(view.size, "exporting") as on_bytes,
    ):
        written = export_to(to, kind, view, desk.store, on_bytes)
    if as_json:
        show.answer_json({"path": str(to), "virtual_size": view.size, "bytes_written": written})
    else:
        show.answer(f"{to} holds disk {chosen.disk} as of {found.time}")


@points.command()
@item_argument
@point_argument
@click.option(
    "--listen", default="127.0.0.1:10809", show_default=True, help="HOST:PORT, or the path of a socket."
)
@disk_option
@config_option
@json_option
def serve(item: uuid.UUID, point: str, listen: str, disk: str, config: Path, as_json: bool) -> None:
    """Serves a disk as it was at a point over NBD, read-only, until Ctrl-C."""
    import sys

    from masttarget.adapters.nbd import NbdServer
    from masttarget.main import stop_on_signals
    from masttarget.reading_points import choose_disk, viewing

    desk = _desk(config, item)
    found = desk.item.points.choose(point)
    with viewing(desk.item, found, choose_disk(desk.disks, found, disk), desk.store) as view:
        server = NbdServer(view, listen, lambda error: show.say(str(error)))
        if not _only_here(listen):
            show.say(
                f"warning: whoever reaches {listen} can read the disk: nobody is asked for a name, nothing is encrypted"
            )
        stop_on_signals(server.close)
        if as_json:
            show.answer_json({"uri": server.uri, "virtual_size": view.size})
        else:
            show.answer(f"serving {server.uri}")
        sys.stdout.flush()
        server.run()


def _only_here(listen: str) -> bool:
    """Whether only this machine reaches the address."""
    import ipaddress

    host = listen.rpartition(":")[0].strip("[]")
    try:
        return listen.startswith("/") or host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@points.command()
@item_argument
@click.argument("point", nargs=-1)
@click.option("--last", is_flag=True, help="Give up the last points too.")
@click.option("--all", "whole", is_flag=True, help="End the history, even a damaged or lost one.")
@click.option("--yes", is_flag=True, help="Yes, even the last one.")
@config_option
@plan_option
@json_option
def drop(
    item: uuid.UUID,
    point: tuple[str, ...],
    last: bool,
    whole: bool,
    yes: bool,
    config: Path,
    plan: bool,
    as_json: bool,
) -> None:
    """Gives points up and makes room. With --last --yes and no POINT: all that are left.

    With --all --yes the item's history ends, also where its journal is damaged or the retention volume is another one;
    the next cycle compares the targets and begins a new history.
    """
    if whole:
        if point or last or not (yes or plan):
            raise click.UsageError("--all ends the item's history: pass it alone, and --yes")
        _end_history(item, config, plan, as_json)
        return
    desk = _desk(config, item)
    if not point and not last:
        raise click.UsageError("name the points to drop, or pass --last --yes")
    gone = [desk.item.points.choose(one) for one in point] or list(desk.item.points)
    if plan:
        if not last:
            desk.item.check_last(gone)
        _plan([f"drop point {one.sequence} ({one.kind.value}, {one.time})" for one in gone], as_json)
        return
    desk.item.drop(gone, last=last and yes)
    desk.item.tidy()
    if as_json:
        show.answer_json({"dropped": [one.sequence for one in gone]})
    else:
        show.answer(f"dropped {counted(len(gone), 'point')}")


def _end_history(item: uuid.UUID, config: Path, plan: bool, as_json: bool) -> None:
    from masttarget.adapters.files import LocalStore
    from masttarget.adapters.retention_files import RetentionFiles
    from masttarget.begin_anew import begin_anew

    found, disks = _settings(config, item, lost=True)
    assert found.retention is not None
    if plan:
        steps = [
            "raise the generation: older agents are refused, the next session compares",
            *(f"forget what is known of the content of disk {one.disk}; it stays as it is" for one in disks),
            f"remove all of the item's points and journals below {found.retention}",
        ]
        _plan(steps, as_json)
        return
    generation = begin_anew(
        disks, item.bytes, RetentionFiles(found.retention), LocalStore(found.state_directory)
    )
    if as_json:
        show.answer_json({"generation": generation})
        return
    show.answer(f"item {item} has no points any more; its target disks hold what they held")
    show.answer(f"set generation = {generation} in the agent's settings: its next sync begins a new history")


def _plan(steps: list[str], as_json: bool, **facts: Any) -> None:
    if as_json:
        show.answer_json({"plan": steps, **facts})
        return
    for number, step in enumerate(steps, start=1):
        show.answer(f"{number}. {step}")


@click.command("verify")
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option("--config", type=click.Path(path_type=Path), help="The settings of the master target (TOML).")
@json_option
@click.pass_obj
def verify_journal(run: Any, directory: Path | None, config: Path | None, as_json: bool) -> None:
    """Reads a retention journal from end to end, by its byte tables. Exit 1: something is wrong with it.

    The journal is DIRECTORY, or the retention volume of the settings.
    """
    from masttarget import config as settings
    from masttarget.errors_retention import RetentionOff
    from masttarget.verify import verify as read

    if (directory is None) == (config is None):
        raise click.UsageError("name either DIRECTORY or --config")
    if config is not None:
        found = settings.load(config)
        directory = found.retention
        if directory is None:
            raise RetentionOff(path=str(config))
        _check_mounted(found)
    assert directory is not None
    verdicts = read(directory)
    if as_json:
        show.answer_json(
            {
                "good": all(one.good for one in verdicts),
                "items": [
                    {
                        "item": one.item,
                        "points": one.points,
                        "errors": [error.as_json() for error in one.errors],
                        "disks": [
                            {
                                "disk": disk.disk,
                                "segments": disk.segments,
                                "records": disk.records,
                                "blocks": disk.blocks,
                                "bytes": disk.bytes,
                                "torn_bytes": disk.torn_bytes,
                                "points_from": disk.points_from,
                                "verified_point": disk.verified_point or None,
                                "errors": [error.as_json() for error in disk.errors],
                            }
                            for disk in one.disks
                        ],
                    }
                    for one in verdicts
                ],
            }
        )
    else:
        for one in verdicts:
            show.answer(f"item {one.item}: {counted(one.points, 'point')}")
            for disk in one.disks:
                show.answer(
                    f"  disk {disk.disk}: {counted(disk.segments, 'segment')}, {counted(disk.blocks, 'block')}, "
                    f"{show.size(disk.bytes)}"
                    + (f", torn tail of {disk.torn_bytes} B" if disk.torn_bytes else "")
                )
                if disk.points_from is None:
                    show.answer("  none of its points can be used")
                elif disk.points_from:
                    show.answer(f"  points from {disk.points_from} on can be used")
            for error in (*one.errors, *(error for disk in one.disks for error in disk.errors)):
                show.say(str(error))
    if not all(one.good for one in verdicts):
        run.exit_code = NO
