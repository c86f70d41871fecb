"""`homeward masttarget volumes`: which volumes of this machine can hold recovery points."""

from pathlib import Path
from typing import Any

import click

from homeward import show

NO = 1


@click.command("volumes")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    help="The settings of the master target (TOML); they need not name a retention volume yet.",
)
@click.option("--all", "everything", is_flag=True, help="Also the others, and what is wrong with them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.pass_obj
def list_volumes(run: Any, config: Path, everything: bool, as_json: bool) -> None:
    """Lists the mounted volumes that can be the retention volume, as of now. Exit 1: there is none.

    None of them is taken by itself: name one as retention in the settings.
    """
    from masttarget import config as settings
    from masttarget.adapters.volumes import candidates
    from masttarget.volume import DEFAULT, obstacles

    volumes = sorted(candidates(settings.load(config)), key=lambda one: (one.path != DEFAULT, one.path))
    found = [(one, obstacles(one)) for one in volumes]
    fit = [one for one, reasons in found if not reasons]
    run.exit_code = run.exit_code if fit else NO
    if not everything:
        found = [(one, []) for one in fit]
    if as_json:
        listed = [
            {
                "path": one.mount_point,
                "file_system": one.kind,
                "capacity_bytes": one.capacity_bytes,
                "eligible": not reasons,
                "obstacles": reasons,
            }
            for one, reasons in found
        ]
        show.answer_json({"volumes": listed})
        return
    for one, reasons in found:
        show.answer(f"{one.mount_point}  {one.kind}, {show.size(one.capacity_bytes)}")
        for reason in reasons:
            show.answer(f"  no: {reason}")
    if not fit:
        show.answer(f"no volume can: add a disk, format it (ext4 or XFS) and mount it at {DEFAULT}")
