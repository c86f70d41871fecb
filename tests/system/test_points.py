"""`homeward points` and `masttarget verify`, while a master target replicates and when it is away."""

import json
import random
import subprocess
from pathlib import Path

import pytest

from tests.system.command import changed, ended, homeward, judge, some_content, start, write_sparse
from tests.system.roles import Pair, Site

MIB = 1024 * 1024


class Home:
    """A site with retention that went through some cycles."""

    def __init__(self, folder: Path, dice: random.Random, cycles: int) -> None:
        self.folder = folder
        self.contents = [some_content(dice, 5 * MIB + 4096)]
        self.target = folder / "target.raw"
        self.source = write_sparse(folder / "source.raw", self.contents[0])
        write_sparse(self.target, some_content(dice, 5 * MIB + 4096))
        self.site = Site(folder, Pair(self.source, self.target))
        self.config = self.site.write_masttarget(
            retention=json.dumps(str(folder / "retention")), retention_own_volume="false"
        )
        self.item = str(self.site.item)
        for number in range(cycles):
            if number:
                self.contents.append(changed(dice, self.contents[-1]))
                write_sparse(self.source, self.contents[-1])
            self.cycle()

    def cycle(self, generation: int = 1) -> None:
        process = start("masttarget", "serve", "--config", self.config, "--json")
        try:
            assert process.stdout is not None
            port = json.loads(process.stdout.readline())["port"]
            agent = self.site.write_agent(port, generation=str(generation))
            homeward("agent", "sync", "--config", agent, "--json").answer()
        finally:
            process.terminate()
            ended(process)

    def points(self, verb: str, *words: object) -> dict[str, object]:
        found: dict[str, object] = self.ask(verb, *words).answer()
        return found

    def ask(self, verb: str, *words: object):  # type: ignore[no-untyped-def]
        return homeward("points", verb, self.item, *words, "--config", self.config, "--json")

    def state(self, number: int) -> Path:
        return write_sparse(self.folder / f"state-{number}.raw", self.contents[number])


def test_a_rollback_says_what_became_of_it_and_how_it_is_taken_back(home: Home) -> None:
    to = (home.item, 1, "--config", home.config)
    assert "crash-consistent" in homeward("points", "rollback", home.item, 2, *to[2:], "--plan").stdout
    told = homeward("points", "rollback", *to).stdout
    assert "holds what it held at point 1 (" in told
    assert "done: point 5 stands for it" in told
    assert f"homeward points rollback {home.item} 4 --config" in told
    assert "(point 1 again)" in homeward("points", "list", home.item, *to[2:]).stdout
    assert homeward("points", "rollback", home.item, 4, *to[2:]).code == 0
    judge(home.target, "raw", home.state(2))
    for where in ((home.folder / "retention",), to[2:]):
        assert homeward("masttarget", "verify", *where, "--json").answer()["good"] is True
    homeward("masttarget", "verify", "--json").refused("HW-HOME-001")


@pytest.fixture
def home(tmp_path: Path, dice: random.Random) -> Home:
    return Home(tmp_path, dice, 3)


def test_a_point_of_which_nothing_was_overwritten_yet_can_be_proved_and_exported(
    tmp_path: Path, dice: random.Random
) -> None:
    content = some_content(dice, MIB)
    site = Site(
        tmp_path,
        Pair(write_sparse(tmp_path / "source.raw", content), tmp_path / "target.raw", create="raw"),
    )
    config = site.write_masttarget(
        retention=json.dumps(str(tmp_path / "retention")), retention_own_volume="false"
    )
    process = start("masttarget", "serve", "--config", config, "--json")
    try:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        homeward("agent", "sync", "--config", site.write_agent(port), "--json").answer()
    finally:
        process.terminate()
        ended(process)
    words = (str(site.item), "latest", "--config", config, "--json")
    assert homeward("points", "verify", *words).answer()["disks"]
    homeward("points", "export", *words, "--to", tmp_path / "out.raw", "--format", "raw").answer()
    judge(tmp_path / "out.raw", "raw", tmp_path / "source.raw")


def test_points_are_listed_proved_exported_and_gone_back_to(home: Home) -> None:
    """R140: each of them, by every verb."""
    listed = home.points("list")["points"]
    assert isinstance(listed, list)
    assert [one["kind"] for one in listed] == ["as-found"] + ["crash-consistent"] * 3
    assert home.points("show", "latest")["sequence"] == 4
    assert home.points("show", listed[2]["time"])["sequence"] == 3
    home.ask("show", "latest-app-consistent").refused("HW-MT-035")
    assert [one["disks"][0]["verified"] for one in listed] == [None, "full", "written", "written"]
    for number in (2, 3, 4):
        (proof,) = home.points("verify", number)["disks"]  # type: ignore[misc]
        assert proof["recorded"] is True
        assert proof["content_root"] == listed[number - 1]["disks"][0]["content_root"]
    told = homeward("points", "show", home.item, 4, "--config", home.config).stdout
    assert "what was written read again" in told
    for kind, name in (("raw", "out.raw"), ("vmdk-monolithicSparse", "out.vmdk")):
        home.points("export", 2, "--to", home.folder / name, "--format", kind)
        judge(home.folder / name, kind, home.state(0))

    before = home.target.read_bytes()
    plan = home.points("rollback", 2, "--plan")["plan"]
    assert isinstance(plan, list)
    assert len(plan) == 4
    assert home.target.read_bytes() == before, "a plan touches nothing"
    gone = home.points("rollback", 2)
    judge(home.target, "raw", home.state(0))
    assert home.points("verify", "latest")["disks"]
    home.points("rollback", 4)  # change recovery point
    judge(home.target, "raw", home.state(2))
    assert (gone["back_to"], gone["before"], gone["sequence"]) == (2, 4, 5)
    assert homeward("masttarget", "verify", home.folder / "retention", "--json").answer()["good"] is True

    home.cycle(generation=3)  # both went up by one with each verb
    judge(home.target, "raw", home.source)


def test_an_older_agent_is_refused_after_a_rollback(home: Home) -> None:
    home.points("rollback", 2)
    with pytest.raises(AssertionError, match="HW-MT-008"):
        home.cycle(generation=1)
    judge(home.target, "raw", home.state(0))


def test_points_are_dropped_and_the_last_only_when_told_twice(home: Home) -> None:
    assert home.points("drop", 1, 2)["dropped"] == [1, 2]
    assert len(home.points("list")["points"]) == 2  # type: ignore[arg-type]
    for plan in ((), ("--plan",)):
        home.ask("drop", 3, 4, *plan).refused("HW-MT-041")
    home.ask("drop", "--last").refused("HW-MT-041")
    assert home.points("drop", "--last", "--yes")["dropped"] == [3, 4]
    assert home.points("drop", "--last")["dropped"] == [], "there is none any more"
    assert list((home.folder / "retention").rglob("*.undo")) == [], "the room is given back"
    home.cycle()
    assert home.points("show", "latest")["sequence"] == 6


def test_a_point_is_served_to_other_programs_while_replication_goes_on(home: Home) -> None:
    """R029, R066: the retention volume keeps it meanwhile."""
    socket = home.folder / "nbd.sock"
    process = start("points", "serve", home.item, "2", "--config", home.config, "--listen", socket, "--json")
    try:
        assert process.stdout is not None
        uri = json.loads(process.stdout.readline())["uri"]
        told = subprocess.run(["nbdinfo", "--json", uri], check=True, capture_output=True, text=True)
        export = json.loads(told.stdout)["exports"][0]
        assert (export["export-size"], export["is_read_only"]) == (5 * MIB + 4096, True)
        write_sparse(home.source, home.contents[0][::-1])
        home.cycle()  # everything is overwritten meanwhile
        home.ask("drop", 2).refused("HW-MT-040")
        copy = home.folder / "copy.raw"
        subprocess.run(["nbdcopy", uri, copy], check=True)
        assert copy.read_bytes() == home.contents[0]
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, copy], check=True)
        assert copy.read_bytes() == home.contents[0], "what is told to be a hole was one"
        compared = subprocess.run(
            ["qemu-img", "compare", "-f", "raw", "-F", "raw", uri, home.state(0)], capture_output=True
        )
        assert compared.returncode == 0, compared.stderr
        wrote = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", uri], capture_output=True)
        assert wrote.returncode != 0
    finally:
        process.terminate()
        ended(process)


def test_a_damaged_journal_is_named_and_newer_points_are_used(home: Home, dice: random.Random) -> None:
    first = min((home.folder / "retention").rglob("*.undo"))
    data = bytearray(first.read_bytes())
    data[dice.randrange(len(data))] ^= 4
    first.write_bytes(data)
    outcome = homeward("masttarget", "verify", home.folder / "retention", "--json")
    assert outcome.code == 1
    home.ask("verify", 1).refused("HW-MT-030")
    assert home.points("verify", 4)["disks"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("raw", "out.raw"), ("vmdk-monolithicSparse", "out.vmdk"), ("vmdk-monolithicFlat", "out.vmdk")],
)
def test_a_killed_export_leaves_no_image_and_the_next_run_makes_it(home: Home, kind: str, name: str) -> None:
    folder = home.folder / "out"
    folder.mkdir()
    words = ("points", "export", home.item, "2", "--to", folder / name, "--format", kind)
    process = start(*words, "--config", home.config)
    hidden = folder / f".{name}.homeward-export"
    while process.poll() is None and not hidden.exists():
        pass
    process.kill()
    ended(process)
    killed = hidden.exists()
    assert (folder / name).exists() is not killed, "half of an image has no name"
    if killed:
        home.points("export", 2, "--to", folder / name, "--format", kind)
    assert all(path.name.startswith("out") for path in folder.iterdir())
    judge(folder / name, kind, home.state(0))


def test_an_export_writes_over_nothing_and_makes_what_its_name_says(home: Home) -> None:
    home.ask("export", 2, "--to", home.target, "--plan").refused("HW-MT-060")
    words = ("export", 2, "--to", home.folder / "out.qcow2", "--format", "qcow2")
    assert "qcow2 is never made" in home.ask(*words).refused("HW-HOME-001")
    line = home.ask("export", 2, "--to", home.target).refused("HW-MT-060")
    assert "points rollback" in line
    assert "--create" not in line
    home.ask("export", 2, "--to", home.folder / "out.vmdk").refused("HW-HOME-001")
    home.points("export", 2, "--to", home.folder / "out.vmdk", "--format", "vmdk-streamOptimized")
    assert homeward("info", home.folder / "out.vmdk", "--json").answer()["format"] == "vmdk-streamOptimized"
    judge(home.folder / "out.vmdk", "vmdk-monolithicSparse", home.state(0))


def test_a_rollback_to_where_the_disk_is_makes_no_point(home: Home) -> None:
    gone = home.points("rollback", 4)
    assert (gone["sequence"], gone["before"]) == (4, None)
    assert [one["sequence"] for one in home.points("list")["points"]] == [1, 2, 3, 4]  # type: ignore[attr-defined]
    assert home.points("rollback", 2)["sequence"] == 5
    home.points("rollback", 5)
    assert home.points("show", "latest")["sequence"] == 5
    judge(home.target, "raw", home.state(0))
    home.cycle(generation=4)
    judge(home.target, "raw", home.source)


@pytest.mark.parametrize(("address", "warned"), [("0.0.0.0:0", True), ("127.0.0.1:0", False)])
def test_serving_to_other_machines_is_warned_of(home: Home, address: str, warned: bool) -> None:
    process = start("points", "serve", home.item, "2", "--config", home.config, "--listen", address, "--json")
    assert process.stdout is not None
    assert process.stdout.readline()
    process.terminate()
    assert ("warning: whoever reaches" in ended(process).stderr) is warned
