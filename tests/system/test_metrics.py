"""What Prometheus gets from a real master target while it replicates."""

import json
import random
import socket
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.system.command import changed, ended, homeward, some_content, start, write_sparse
from tests.system.roles import Pair, Site

MIB = 1024 * 1024


def scrape(url: str) -> dict[str, dict[str, float]]:
    """Values by metric and by state (empty without one)."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.status == 200
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[sample.labels.get("state", "")] = sample.value
    return found


def test_a_scrape_tells_how_the_disk_is_doing(tmp_path: Path, dice: random.Random) -> None:
    content = some_content(dice, 5 * MIB + 4096)
    source = write_sparse(tmp_path / "source.raw", content)
    target = write_sparse(tmp_path / "target.raw", changed(dice, content))
    site = Site(tmp_path, Pair(source, target))
    config = site.write_masttarget(
        metrics='"127.0.0.1:0"',
        retention=json.dumps(str(tmp_path / "retention")),
        retention_own_volume="false",
    )
    points = []
    for run in range(2):
        process = start("masttarget", "serve", "--config", config, "--json")
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            port = json.loads(process.stdout.readline())["port"]
            told = json.loads(process.stderr.readline())
            assert told["event"] == "metrics"
            before = scrape(told["url"])
            assert before["homeward_disk_session"] == {"": 0}
            assert before["homeward_rpo_threshold_seconds"] == {"": 900}
            assert ("homeward_disk_last_point_timestamp_seconds" in before) == (run == 1), (
                "a restart remembers"
            )
            homeward("agent", "sync", "--config", site.write_agent(port), "--json").answer()
            after = scrape(told["url"])
        finally:
            process.terminate()
            outcome = ended(process)
        assert "Traceback" not in outcome.stderr
        assert after["homeward_disk_size_bytes"] == {"": len(content)}
        assert after["homeward_disk_compared_bytes"] == {"": len(content)}
        assert (after["homeward_disk_received_bytes_total"][""] > 0) == (run == 0)
        assert (after["homeward_disk_written_bytes_total"][""] > 0) == (run == 0)
        assert after["homeward_disk_backlog_bytes"] == {"": 0}
        assert after["homeward_disk_rpo_exceeded"] == {"": 0}
        assert after["homeward_disk_lag_seconds"][""] < 60
        assert after["homeward_disk_health"] == {"healthy": 1, "warning": 0, "critical": 0}
        points.append(after["homeward_disk_last_point_timestamp_seconds"][""])
    assert points[0] < points[1]


def test_a_metrics_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    source = write_sparse(tmp_path / "source.raw", b"x" * 4096)
    site = Site(tmp_path, Pair(source, tmp_path / "target.raw", create="raw"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = site.write_masttarget(metrics=f'"127.0.0.1:{taken.getsockname()[1]}"')
        homeward("masttarget", "serve", "--config", config, "--json").refused("HW-MT-015")
