"""The `homeward` command: verbs, options, exit codes. It decides nothing; it calls the roles and shows their words."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.errors import Stopped
from disks.disk import Format
from drcore.errors import HomewardError
from drcore.record import Changing
from drcore.settings import SettingsError, parse_rate
from homeward import show
from homeward.ending import DONE, ERROR, NO, carry_out
from homeward.errors import UsageRefused
from homeward.quick import COMPRESSIONS, CREATABLE, FORMATS
from homeward.status import status_option, telling
from homeward.stopping import Hangup, Interrupt

if TYPE_CHECKING:
    from disks import catalogue


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


class Run(Changing):
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
    from homeward.noticing import notice

    kind = Format(told) if told else None
    notice(image)
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
    from homeward import comparing

    run.exit_code = comparing.compare(
        source,
        target,
        source_format=source_format,
        target_format=target_format,
        allow_larger=allow_larger,
        as_json=as_json,
    )


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
@click.option("--compression", type=click.Choice(COMPRESSIONS), default="auto", show_default=True)
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
@click.pass_obj
def sync(
    run: Run,
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
    from homeward import syncing

    run.exit_code = syncing.sync(
        source,
        target,
        create=create,
        source_format=source_format,
        target_format=target_format,
        bandwidth=bandwidth,
        compression=compression,
        allow_larger=allow_larger,
        adopt=adopt,
        lanes=lanes,
        state_directory=state_directory,
        as_json=as_json,
    )


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
    from homeward.reporting import cpu_seconds, standing_of, summary

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
        return standing_of(role)

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
    cpu = round(cpu_seconds(), 3)
    if not as_json:
        summary(report, seconds, cpu)
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


def main() -> None:
    """Runs the command line and exits: 0 done, 1 the answer is no, 2 a coded error, 130 interrupted."""
    run = Run()
    carry_out(lambda: _command(run), lambda: run.debug)


def _command(run: Run) -> int:
    """What the command line asks for was done; answers the exit code. What click says is said in our words."""
    try:
        cli.main(standalone_mode=False, obj=run)
    except click.exceptions.Abort as error:
        raise Stopped() from error
    except click.exceptions.NoArgsIsHelpError as error:
        show.say(error.format_message())
        return ERROR
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "homeward"
        raise UsageRefused(reason=error.format_message().rstrip("."), help=f"{command} --help") from error
    return run.exit_code
