"""The `homeward` command: verbs, options, exit codes. It decides nothing; it calls the roles and shows their words."""

import contextlib
import gc
import os
import resource
import sys
import time
from dataclasses import dataclass
from io import FileIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from disks.disk import CREATED, Format
from drcore.errors import HomewardError, coded
from drcore.settings import SettingsError, parse_rate
from drcore.units import BLOCK_BYTES
from homeward import show
from homeward.errors import NotConfirmed, UsageRefused
from homeward.status import status_option, telling
from homeward.stopping import Hangup, Interrupt, leave

if TYPE_CHECKING:
    from disks import catalogue

DONE, NO, ERROR, INTERRUPTED = 0, 1, 2, 130


class Rate(click.ParamType[int]):
    """A rate such as 50M."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_rate(str(value))
        except SettingsError as error:
            self.fail(str(error), param, ctx)


FORMATS = tuple(kind.value for kind in Format)
CREATABLE = tuple(kind.value for kind in (*CREATED, Format.VMDK_STREAM_OPTIMIZED))
GARBAGE_THRESHOLD = 20_000
"""Objects between two searches for cycles: at Python's own 700 they take a sixth of the time of all imports."""
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
path_argument = click.Path(path_type=Path)


class _Commands(click.Group):
    """The commands below and further ones, which are imported when one of them is asked for."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or self._further().get(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self._further()])

    def _further(self) -> dict[str, click.Command]:
        from homeward import control, points_group

        return {str(command.name): command for command in (*control.COMMANDS, points_group.points)}


class _AgentVerbs(_Commands):
    """The agent's verbs."""

    def _further(self) -> dict[str, click.Command]:
        from homeward import role_verbs

        return {str(command.name): command for command in role_verbs.AGENT_VERBS}


class _MasttargetVerbs(_Commands):
    """The master target's verbs."""

    def _further(self) -> dict[str, click.Command]:
        from homeward import points_group, role_verbs, volumes

        verbs = (*role_verbs.MASTTARGET_VERBS, points_group.verify_journal, volumes.list_volumes)
        return {str(command.name): command for command in verbs}


@dataclass(slots=True)
class Run:
    """What one call of the command carries from the group to its end."""

    debug: bool = False
    exit_code: int = DONE


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="homeward")
@click.option("--debug", is_flag=True, help="Print a traceback when homeward itself is at fault.")
@click.pass_obj
def cli(run: Run, debug: bool) -> None:
    """Brings failed-over machines home: compares disks, ships what differs, proves the result."""
    run.debug = debug


@cli.command()
@click.argument("image", type=path_argument)
@click.option(
    "--format", "told", type=click.Choice(FORMATS), help="What the image is, when its name does not tell."
)
@click.option("--check", "checks", is_flag=True, help="Verify the structure too. Exit 0: sound, 1: damaged.")
@json_option
@click.pass_obj
def info(run: Run, image: Path, told: str | None, checks: bool, as_json: bool) -> None:
    """Shows what a disk image is, and with --check what is wrong with its structure, and where."""
    from disks import catalogue

    kind = Format(told) if told else None
    _notice(image)
    if checks:
        checked = catalogue.check(image, kind)
        run.exit_code = NO if checked.damaged else DONE
        found, findings = checked.info, checked.findings
    else:
        found, findings = catalogue.inspect(image, kind), ()
    if as_json:
        answer = show.image(found, kind)
        show.answer_json({**answer, "check": show.findings(findings)} if checks else answer)
        return
    if found is not None:
        _tell_image(found)
    if checks:
        for finding in findings:
            show.answer(show.finding_line(finding))
        sound = "nothing to check: raw has no structure" if found and found.format is Format.RAW else "sound"
        show.answer(f"check          {'damaged' if run.exit_code else sound}")


def _tell_image(found: "catalogue.ImageInfo") -> None:
    show.answer(f"format         {found.format.value}")
    show.answer(f"virtual size   {show.size(found.virtual_size)} ({show.count(found.virtual_size)} bytes)")
    show.answer(
        f"allocated      {show.size(found.allocated_bytes)} ({show.count(found.allocated_bytes)} bytes)"
    )
    grain = show.size(found.grain_size) if found.grain_size else "none: the format allocates nothing"
    show.answer(f"grain size     {grain}")


@cli.command()
@click.argument("source", type=path_argument)
@click.argument("target", type=path_argument)
@click.option("--source-format", type=click.Choice(FORMATS), help="What the source is.")
@click.option("--target-format", type=click.Choice(FORMATS), help="What the target is.")
@click.option("--allow-larger", is_flag=True, help="Accept a target that is larger than the source.")
@json_option
@click.pass_obj
def compare(
    run: Run,
    source: Path,
    target: Path,
    source_format: str | None,
    target_format: str | None,
    allow_larger: bool,
    as_json: bool,
) -> None:
    """Tells exactly what differs between two disks, and what a sync would send. Exit 0: equal, 1: different."""
    from agent import measure
    from agent.errors import Stopped
    from disks import catalogue

    began = time.monotonic()
    stopped = Interrupt()
    _notice(source, target)
    first = catalogue.open_source(source, Format(source_format) if source_format else None)
    second = catalogue.open_source(target, Format(target_format) if target_format else None)
    measure.check_sizes(first, second, str(target), allow_larger=allow_larger)
    found = measure.Measurement()

    def standing() -> show.Standing:
        return show.Standing(found.bytes_done, found.virtual_size, found.bytes_done, "comparing")

    with stopped, show.progress(standing):
        measure.measure(first, second, found, lambda: stopped.asked)
    if stopped.asked:
        raise Stopped()
    first.close()
    second.close()
    run.exit_code = NO if found.blocks_changed else DONE
    seconds = round(time.monotonic() - began, 3)
    if as_json:
        show.answer_json(
            {
                "virtual_size": found.virtual_size,
                "block_size": 65536,
                "blocks_total": found.blocks_total,
                "blocks_changed": found.blocks_changed,
                "sectors_changed": found.sectors_changed,
                "bytes_changed": found.bytes_changed,
                "bytes_zero": found.bytes_zero,
                "bytes_to_send": found.bytes_to_send,
                "bytes_to_send_is": "exact" if found.exact else "sampled",
                "seconds": seconds,
            }
        )
        return
    if not found.blocks_changed:
        show.answer(f"equal: {show.size(found.virtual_size)} compared in {show.duration(seconds)}")
        return
    about = "" if found.exact else "about "
    show.answer(
        f"different: {show.count(found.blocks_changed)} of {show.count(found.blocks_total)} blocks (64 KiB), "
        f"in them {show.counted(found.sectors_changed, 'sector')} (4 KiB), {show.size(found.bytes_changed)}"
    )
    show.answer(f"of those bytes {show.size(found.bytes_zero)} become zero")
    show.answer(f"a sync would send {about}{show.size(found.bytes_to_send)} of content, compressed")
    show.answer(f"compared {show.size(found.virtual_size)} in {show.duration(seconds)}")


class _Sync(click.Command):
    """Its help shows both ways to call it."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] SOURCE TARGET")
        formatter.write_usage(ctx.command_path, "--undo|--drop-undo [OPTIONS] TARGET", prefix="   or: ")


@cli.command(cls=_Sync)
@click.argument("source", type=path_argument, required=False)
@click.argument("target", type=path_argument, required=False)
@click.option("--undo", is_flag=True, help="Take the last sync of TARGET back, finished or broken off.")
@click.option("--drop-undo", is_flag=True, help="Give up the way back: TARGET's undo journal is removed.")
@click.option(
    "--create", type=click.Choice(CREATABLE), help="Create the target in this format when it does not exist."
)
@click.option("--source-format", type=click.Choice(FORMATS), help="What the source is.")
@click.option("--target-format", type=click.Choice(FORMATS), help="What the target is.")
@click.option(
    "--bandwidth", type=Rate(), help="At most so many bytes a second on the wire, such as 50M or 50Mi."
)
@click.option(
    "--compression", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True
)
@click.option("--allow-larger", is_flag=True, help="Accept a target that is larger than the source.")
@click.option("--adopt", is_flag=True, help="The target is the right one: do not ask.")
@click.option("--lanes", type=click.IntRange(1, 16), default=1, show_default=True, help="Connections to use.")
@click.option(
    "--state-directory",
    type=path_argument,
    envvar="HOMEWARD_STATE_DIRECTORY",
    default="/var/lib/homeward/sync",
    show_default=True,
    help="Where a broken sync onto a device is remembered.",
)
@json_option
def sync(
    source: Path | None,
    target: Path | None,
    undo: bool,
    drop_undo: bool,
    create: str | None,
    source_format: str | None,
    target_format: str | None,
    bandwidth: int | None,
    compression: str,
    allow_larger: bool,
    adopt: bool,
    lanes: int,
    state_directory: Path,
    as_json: bool,
) -> None:
    """Brings TARGET up to date with SOURCE; only what differs is sent. A broken run goes on where it stopped.

    What TARGET held is kept in TARGET.homeward until --drop-undo TARGET; --undo TARGET brings it back.
    """
    if undo or drop_undo:
        from homeward import points

        if source is None or target is not None or (undo and drop_undo):
            raise click.UsageError("--undo and --drop-undo take one TARGET and nothing else")
        (points.undo_sync if undo else points.drop_undo)(
            source, target_format, state_directory, as_json=as_json
        )
        return
    if source is None or target is None:
        raise click.UsageError(f"Missing argument '{'SOURCE' if source is None else 'TARGET'}'.")
    from agent.config import Compression
    from disks.disk import Format
    from homeward.local import LocalSync, SyncOrder

    began = time.monotonic()
    if create and Format(create) is Format.VMDK_STREAM_OPTIMIZED and not os.path.lexists(target):
        _sync_whole(source, source_format, target, as_json=as_json)
        return
    order = SyncOrder(
        source=source.absolute(),
        target=target,
        create=create or "",
        source_format=Format(source_format) if source_format else None,
        target_format=Format(target_format) if target_format else None,
        bandwidth=bandwidth,
        compression=Compression(compression),
        allow_larger=allow_larger,
        adopt=adopt or _confirmed(source, source_format, target, target_format, state_directory),
        lanes=lanes,
    )
    local = LocalSync(order, state_directory, lambda error, wait: None)
    warned = False

    def standing() -> show.Standing:
        nonlocal warned
        if local.agent is not None and local.agent.progress.overwrites and not warned:
            warned = True
            show.say(f"{target}: what is overwritten is kept; homeward sync --undo {target} brings it back")
        return _standing(local.agent)

    with Interrupt(local.stop):
        local.start()
        _notice(source, target)
        with show.progress(standing):
            report = local.run()
    _tell_sync(report, round(time.monotonic() - began, 3), as_json=as_json)


def _sync_whole(source: Path, source_format: str | None, target: Path, *, as_json: bool) -> None:
    """`sync --create` of a format that is written from end to end, in this process."""
    from homeward.whole import WholeSync

    began = time.monotonic()
    whole = WholeSync(source, Format(source_format) if source_format else None, target)
    _notice(source)

    def standing() -> show.Standing:
        return show.Standing(
            whole.bytes_done, whole.bytes_total, whole.bytes_done, "writing and reading back"
        )

    with Interrupt(whole.stop), show.progress(standing):
        report = whole.run()
    _tell_sync(report, round(time.monotonic() - began, 3), as_json=as_json)


def _notice(*paths: Path) -> None:
    """Whoever names a file that is raw by its name and begins as a container does is told so, and that it is raw."""
    from disks import catalogue

    for path in paths:
        with contextlib.suppress(HomewardError):  # what is wrong with the path is told by who opens it
            found = catalogue.disguised(path)
            if found is not None:
                show.say(f"notice: {found}")


def _tell_sync(report: Any, seconds: float, *, as_json: bool) -> None:
    cpu = round(_cpu_seconds(), 3)
    disk = report.disks[0]
    if as_json:
        show.answer_json(
            {
                "virtual_size": disk.virtual_size,
                "blocks_sent": disk.blocks_sent,
                "sectors_sent": disk.sectors_sent,
                "blocks_referenced": disk.blocks_referenced,
                "sectors_referenced": disk.sectors_referenced,
                "bytes_sent": report.bytes_sent,
                "bytes_received": report.bytes_received,
                "bytes_resent": disk.bytes_resent,
                "resumed": report.resumed,
                "root": disk.root.hex(),
                "seconds": seconds,
                "cpu_seconds": cpu,
            }
        )
        return
    _summary(report, seconds, cpu)


def _summary(report: Any, seconds: float, cpu: float) -> None:
    for disk in report.disks:
        again = " (a broken run went on)" if report.resumed else ""
        show.answer(f"done in {show.duration(seconds)}{again}: source and target hold the same")
        if len(report.disks) > 1:
            show.answer(f"disk      {disk.disk}, {show.size(disk.virtual_size)}")
        show.answer(
            f"sent      {show.counted(disk.blocks_sent, 'block')}, in "
            f"{'it' if disk.blocks_sent == 1 else 'them'} {show.counted(disk.sectors_sent, 'sector')}, "
            f"{show.size(disk.content_bytes)} of content"
        )
        if disk.bytes_resent:
            show.answer(f"again     {show.size(disk.bytes_resent)} that a broken run had sent already")
        show.answer(f"root      {disk.root.hex()}")
    total = sum(disk.virtual_size for disk in report.disks)
    show.answer(
        f"network   {show.size(report.bytes_sent)} out, {show.size(report.bytes_received)} in, "
        f"for {show.size(total)} of disk"
    )
    show.answer(f"CPU       {show.duration(cpu)}")


def _standing(agent: Any) -> show.Standing:
    if agent is None:
        return show.Standing(0, 0, 0, "starting")
    now = agent.progress
    if now.waits:
        return show.Standing(
            now.compared_bytes, now.total_bytes, now.bytes_sent, "waiting for room at the master target"
        )
    if now.compared_bytes < now.total_bytes:
        return show.Standing(now.compared_bytes, now.total_bytes, now.bytes_sent, "comparing and sending")
    sent, ordered = now.sent_blocks * BLOCK_BYTES, now.ordered_blocks * BLOCK_BYTES
    return show.Standing(sent, ordered, now.bytes_sent, "sending the rest")


def _confirmed(source: Path, source_told: str | None, target: Path, told: str | None, state: Path) -> bool:
    """Whether the operator has confirmed the target; in a script files need no confirmation, devices always do."""
    from disks import catalogue
    from disks.disk import Format
    from homeward.local import Workplace

    if not target.exists() or Workplace(target, state).resumes:
        return False
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        return not target.is_block_device()
    for label, path, kind in (("source", source, source_told), ("target", target, told)):
        disk = catalogue.open_source(path, Format(kind) if kind else None)
        show.identity(label, catalogue.identity(disk))
        disk.close()
    if not click.confirm(
        "Is this target the disk to be overwritten with the source?", default=False, err=True
    ):
        raise NotConfirmed(path=str(target))
    return True


@cli.group(cls=_MasttargetVerbs)
def masttarget() -> None:
    """The master target: receives disks at home."""


@masttarget.command()
@click.option("--config", "config_path", type=path_argument, required=True, help="The settings file (TOML).")
@click.option("--once", is_flag=True, help="End after the first session.")
@click.option("--until-stdin-closes", is_flag=True, help="End when whoever started it has gone.")
@json_option
def serve(config_path: Path, once: bool, until_stdin_closes: bool, as_json: bool) -> None:
    """Listens for agents and writes what they send, until it is told to stop (SIGTERM, Ctrl-C)."""
    from homeward.logs import log_to_stderr
    from masttarget import config as settings
    from masttarget.main import Master, check, stop_on_signals, stop_when_stdin_closes

    found = settings.load(config_path)
    check(found, config_path)
    master = Master(found, log_to_stderr())
    stop_on_signals(master.stop)
    if until_stdin_closes:
        stop_when_stdin_closes(master.stop)
    host, port = master.address
    if as_json:
        show.answer_json({"listening": f"{host}:{port}", "host": host, "port": port})
    else:
        show.answer(f"listening on {host}:{port}")
    sys.stdout.flush()
    master.run(once=once)


@cli.group(cls=_AgentVerbs)
def agent() -> None:
    """The agent: reads the disks of a failed-over machine and ships what differs."""


@agent.command("sync")
@click.option("--config", "config_path", type=path_argument, required=True, help="The settings file (TOML).")
@status_option
@json_option
def agent_sync(config_path: Path, status: Path | None, as_json: bool) -> None:
    """Runs one cycle: brings the item's disks at the master target up to date."""
    from agent import config as settings
    from agent.main import Agent

    began = time.monotonic()

    def on_retry(error: HomewardError, wait: float) -> None:
        show.say(f"{error}")
        show.say(f"connecting again in {show.duration(wait)}")

    def on_warning(error: HomewardError) -> None:
        show.say(f"{error}")

    role = Agent(settings.load(config_path), on_retry, on_warning=on_warning)
    waited = False

    def standing() -> show.Standing:
        nonlocal waited
        if role.progress.waits != waited:
            waited = not waited
            show.say(show.WAITS_FOR_ROOM if waited else "there is room again: the cycle goes on")
        return _standing(role)

    def settings_again() -> None:
        try:
            role.set_bandwidth(settings.load(config_path).bandwidth)
        except HomewardError as error:
            show.say(f"{error}")

    with (
        Interrupt(role.stop),
        Hangup(settings_again),
        show.progress(standing),
        telling(status, standing),
    ):
        report = role.run()
    seconds = round(time.monotonic() - began, 3)
    cpu = round(_cpu_seconds(), 3)
    if not as_json:
        _summary(report, seconds, cpu)
        return
    disks = [
        {
            "disk": disk.disk,
            "virtual_size": disk.virtual_size,
            "blocks_sent": disk.blocks_sent,
            "sectors_sent": disk.sectors_sent,
            "blocks_referenced": disk.blocks_referenced,
            "sectors_referenced": disk.sectors_referenced,
            "bytes_resent": disk.bytes_resent,
            "root": disk.root.hex(),
        }
        for disk in report.disks
    ]
    show.answer_json(
        {
            "disks": disks,
            "bytes_sent": report.bytes_sent,
            "bytes_received": report.bytes_received,
            "lanes": report.lanes,
            "resumed": report.resumed,
            "point": report.point.hex(),
            "kind": "app-consistent" if report.app_consistent else "crash-consistent",
            "seconds": seconds,
            "cpu_seconds": cpu,
        }
    )


def _cpu_seconds() -> float:
    """User and system time of this process and of those it has waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _standard_descriptors() -> None:
    """Descriptors 0 to 2 are open: no disk may ever be opened as one of them and take somebody's messages."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, TextIOWrapper(FileIO(number, "w", closefd=False)))


def _fail(error: HomewardError, code: int) -> NoReturn:
    if "--json" in sys.argv[1:]:
        show.answer_json(error.as_json())
    show.say(str(error))
    sys.exit(code)


def main() -> None:
    """Runs the command line and exits: 0 done, 1 the answer is no, 2 a coded error, 130 interrupted."""
    from agent.errors import Stopped

    gc.set_threshold(GARBAGE_THRESHOLD)
    run = Run()
    _standard_descriptors()
    try:
        cli.main(standalone_mode=False, obj=run)
        show.finish()
    except Stopped as error:
        _fail(error, INTERRUPTED)
    except HomewardError as error:
        _fail(error, ERROR)
    except click.exceptions.Abort:
        _fail(Stopped(), INTERRUPTED)
    except KeyboardInterrupt:
        _fail(Stopped(), INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        show.say(error.format_message())
        sys.exit(ERROR)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "homeward"
        _fail(UsageRefused(reason=error.format_message().rstrip("."), help=f"{command} --help"), ERROR)
    except BrokenPipeError:
        sys.exit(ERROR)
    except Exception as error:
        if run.debug:
            import traceback

            traceback.print_exc()
        _fail(coded(error), ERROR)
    leave(run.exit_code)
