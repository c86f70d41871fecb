"""`homeward confserver`, `items`, `preflight`, the verbs of an item and `jobs`: what they take and what they print."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from drcore.secret import read_key_file
from homeward import server as remote
from homeward import show
from homeward import watch as watching
from homeward.errors import ProofRefused
from homeward.server import Client, server_option, token_option
from homeward.stopping import Interrupt

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
NO, INTERRUPTED = 1, 130


@click.group()
def confserver() -> None:
    """The configuration server: items, jobs, pre-flight; drives vCenter and Azure."""


@confserver.command()
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), required=True, help="The settings (TOML)."
)
@json_option
def serve(config_path: Path, as_json: bool) -> None:
    """Serves the REST API until it is told to stop (SIGTERM, Ctrl-C); jobs that were under way go on."""
    from confserver.main import serve as run

    def announce(host: str, port: int) -> None:
        if as_json:
            show.answer_json({"listening": f"{host}:{port}", "host": host, "port": port})
        else:
            show.answer(f"listening on {host}:{port}")
        sys.stdout.flush()

    run(config_path, announce)


@click.group()
def items() -> None:
    """The machines that can come home."""


@items.command("list")
@server_option
@token_option
@json_option
def list_items(server: str, token_file: Path | None, as_json: bool) -> None:
    """Lists all items."""
    found = Client(server, token_file).get("/items")
    _answer(found, as_json, lambda: remote.show_items(found["items"]))


@items.command("show")
@click.argument("item")
@server_option
@token_option
@json_option
def show_item(item: str, server: str, token_file: Path | None, as_json: bool) -> None:
    """Shows one item."""
    found = Client(server, token_file).get(f"/items/{item}")
    _answer(found, as_json, lambda: remote.show_item(found))


@items.command("enable")
@click.argument("name")
@click.option("--vm", required=True, help="The VM's name in the vCenter.")
@click.option("--masttarget", required=True, help="The name of the master target's VM.")
@click.option("--azure-vm", required=True, help="The resource id of the machine in Azure.")
@click.option("--os", "os_family", type=click.Choice(["linux", "windows"]), help="The guest's family.")
@click.option(
    "--disk",
    "disks",
    multiple=True,
    required=True,
    metavar="UUID=AZUREDISK",
    help="VMware disk UUID and the resource id of the managed disk; once for each disk.",
)
@server_option
@token_option
@json_option
def enable_item(
    name: str,
    vm: str,
    masttarget: str,
    azure_vm: str,
    os_family: str | None,
    disks: tuple[str, ...],
    server: str,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Makes a failed-over machine an item."""
    pairs = [disk.partition("=") for disk in disks]
    if any(not mark for _, mark, _ in pairs):
        raise click.BadParameter("has to be UUID=AZUREDISK", param_hint="--disk")
    body = {
        "name": name,
        "vm": vm,
        "masttarget": masttarget,
        "azure_vm": azure_vm,
        "os_family": os_family or "",
        "disks": [{"disk": uuid, "azure_disk": azure} for uuid, _, azure in pairs],
    }
    found = Client(server, token_file).post("/items", body)
    _answer(found, as_json, lambda: remote.show_item(found))


@click.command()
@click.argument("item")
@click.option(
    "--for", "verb", type=click.Choice(["reprotect", "failback"]), default="reprotect", show_default=True
)
@server_option
@token_option
@json_option
@click.pass_obj
def preflight(run: Any, item: str, verb: str, server: str, token_file: Path | None, as_json: bool) -> None:
    """Checks everything that a verb needs, before anything is touched. Exit 1: the answer is no."""
    found = Client(server, token_file).get(f"/items/{item}/preflight", verb=verb)
    run.exit_code = NO if found["answer"] == "no" else 0
    _answer(found, as_json, lambda: remote.show_preflight(found))


def _verb(name: str, words: str, *options: click.Option) -> click.Command:
    @click.command(name, help=words, params=list(options))
    @click.argument("item")
    @click.option("--plan", is_flag=True, help="Only tell what would be done; touches nothing.")
    @click.option("--wait", is_flag=True, help="Wait for the job and show its steps. Exit 1: it failed.")
    @server_option
    @token_option
    @json_option
    @click.pass_obj
    def command(
        run: Any, item: str, plan: bool, wait: bool, server: str, token_file: Path | None, as_json: bool
    ) -> None:
        client = Client(server, token_file)
        if plan:
            made = client.post(f"/items/{item}/{name}", plan="true")
            _answer(made, as_json, lambda: remote.show_plan(made, item))
            return
        job = client.post(f"/items/{item}/{name}")
        if wait:
            _watch(run, client, job["id"], as_json)
        else:
            _answer(
                job,
                as_json,
                lambda: show.answer(f"job {job['id']} is under way: homeward jobs watch {job['id']}"),
            )

    return command


VERBS = (
    _verb("reprotect", "Brings an item's disks at home up to date while its machine keeps running in Azure."),
    _verb("replicate", "Runs one more cycle of a protected item."),
    _verb(
        "failback",
        "Stops the machine in Azure, brings the rest home, proves it and starts the VM at home.",
        click.Option(
            ["--verify"],
            type=click.Choice(["full"]),
            default="full",
            show_default=True,
            expose_value=False,
            help="What both roles read again for the proof, before the VM starts: all of both sides.",
        ),
    ),
    _verb("commit", "Makes a failback final: what the VM at home wrote since stays."),
    _verb(
        "cancel",
        "Ends the item's running job, or takes back a failback that is not committed, or a reprotect.",
    ),
)


@click.group()
def jobs() -> None:
    """What the verbs do and did."""


@jobs.command("list")
@click.option("--item", default="", help="Only the jobs of this item.")
@server_option
@token_option
@json_option
def list_jobs(item: str, server: str, token_file: Path | None, as_json: bool) -> None:
    """Lists jobs, the oldest first."""
    found = Client(server, token_file).get("/jobs", item=item)
    _answer(found, as_json, lambda: remote.show_jobs(found["jobs"]))


@jobs.command("show")
@click.argument("reference", metavar="ITEM|JOB")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    help="Check the proof in the report with the item's key (key_file of the server's [replication]).",
)
@server_option
@token_option
@json_option
def show_job(
    reference: str, key_file: Path | None, server: str, token_file: Path | None, as_json: bool
) -> None:
    """Shows a job with its steps and its report; of an item, its newest job."""
    client = Client(server, token_file)
    found = client.get(f"/jobs/{watching.resolve(client, reference)}")
    if key_file is not None:
        _check_proof(found, key_file)
    _answer(found, as_json, lambda: remote.show_job(found, _name(client, found)))
    if key_file is not None and not as_json:
        show.answer(f"  checked with {key_file}: authentic")


def _check_proof(job: dict[str, Any], key_file: Path) -> None:
    """The job's proof was made with this key. Errors: `ProofRefused` (HW-HOME-012), `KeyFileRefused` (HW-CORE-001)."""
    from confserver.proofs import authentic

    proof = job["report"].get("proof")
    key = read_key_file(key_file)
    reason = "no proof in the report" if proof is None else "a tag that another key made, or other content"
    if proof is None or not authentic(proof, key):
        raise ProofRefused(job=job["id"], key_file=str(key_file), reason=reason)


@jobs.command("watch")
@click.argument("reference", metavar="ITEM|JOB")
@server_option
@token_option
@json_option
@click.pass_obj
def watch_job(run: Any, reference: str, server: str, token_file: Path | None, as_json: bool) -> None:
    """Shows a job's steps as they happen, until it is over; of an item, those of its newest job.

    Exit 1: it failed. Ctrl-C ends the watching (exit 130) and leaves the job alone.
    """
    _watch(run, Client(server, token_file), reference, as_json)


@jobs.command("cancel")
@click.argument("job")
@server_option
@token_option
@json_option
def cancel_job(job: str, server: str, token_file: Path | None, as_json: bool) -> None:
    """Ends a job and undoes what it did."""
    client = Client(server, token_file)
    found = client.post(f"/jobs/{job}/cancel")
    _answer(found, as_json, lambda: remote.show_job(found, _name(client, found)))


@jobs.command("retry")
@click.argument("job")
@server_option
@token_option
@json_option
def retry_job(job: str, server: str, token_file: Path | None, as_json: bool) -> None:
    """Runs a failed job's verb again, or goes on with the undo of one that is stuck."""
    client = Client(server, token_file)
    found = client.post(f"/jobs/{job}/retry")
    _answer(found, as_json, lambda: remote.show_job(found, _name(client, found)))


COMMANDS = (confserver, items, preflight, *VERBS, jobs)


def _watch(run: Any, client: Client, reference: str, as_json: bool) -> None:
    interrupt = Interrupt(words="the watching ends, the job goes on; once more to leave at once")
    with interrupt:
        job = watching.resolve(client, reference)
        found = watching.watch(client, job, lambda: interrupt.asked)
    if found["status"] not in remote.OVER:
        show.say(f"the job goes on: homeward jobs watch {job}")
        run.exit_code = INTERRUPTED
    else:
        run.exit_code = 0 if found["status"] == remote.GOOD else NO

    def tell() -> None:
        if found["status"] in remote.OVER:
            for line in watching.outcome(found):
                show.answer(line)
        remote.show_proof(found)

    _answer(found, as_json, tell)


def _name(client: Client, job: dict[str, Any]) -> str:
    """The name of the job's item."""
    return str(client.get(f"/items/{job['item']}")["name"])


def _answer(found: Any, as_json: bool, for_people: Any) -> None:
    if as_json:
        show.answer(json.dumps(found))
    else:
        for_people()
