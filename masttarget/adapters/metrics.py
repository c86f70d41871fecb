"""What `masttarget.health` knows, for Prometheus: an HTTP port of this machine that answers every GET with it."""

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from masttarget.errors import ListenFailed
from masttarget.health import DiskHealth, Health, Watch

_LABELS: Final = ("item", "disk")


class _Disks(Collector):
    """A fresh look at every scrape."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterable[Metric]:
        found = self._watch.look()
        threshold = GaugeMetricFamily(
            "homeward_rpo_threshold_seconds", "Lag from which on the RPO is exceeded."
        )
        threshold.add_metric([], self._watch.rpo_seconds)
        yield threshold
        yield from _counters(found)
        yield from _gauges(found)
        states = GaugeMetricFamily(
            "homeward_disk_health", "1 for the state that the disk is in.", labels=[*_LABELS, "state"]
        )
        for one in found:
            for state in Health:
                states.add_metric([one.item, one.disk, state.value], float(one.health is state))
        yield states


def _counters(found: tuple[DiskHealth, ...]) -> Iterator[Metric]:
    received = CounterMetricFamily(
        "homeward_disk_received_bytes", "Content that agents have sent, before compression.", labels=_LABELS
    )
    written = CounterMetricFamily("homeward_disk_written_bytes", "Written to the target.", labels=_LABELS)
    for one in found:
        received.add_metric([one.item, one.disk], one.received_bytes)
        written.add_metric([one.item, one.disk], one.written_bytes)
    yield from (received, written)


def _gauges(found: tuple[DiskHealth, ...]) -> Iterator[Metric]:
    """What is not known has no sample."""
    for name, words, values in (
        ("session", "Number of the current session, 0 without one.", [one.session for one in found]),
        ("size_bytes", "Bytes of the source, as far as told.", [one.size_bytes for one in found]),
        ("compared_bytes", "Of the target, in this session.", [one.compared_bytes for one in found]),
        ("rate_bytes_per_second", "Content received, lately.", [one.rate_bytes for one in found]),
        ("backlog_bytes", "Found to differ and still to come.", [one.backlog_bytes for one in found]),
        ("eta_seconds", "Until the backlog has come, at this rate.", [one.eta_seconds for one in found]),
        ("lag_seconds", "Since the target last held what the source held.", [one.lag_seconds for one in found]),
        ("last_point_timestamp_seconds", "When that was, UTC.", [one.in_sync_at for one in found]),
        ("rpo_exceeded", "1 while the lag is above the threshold.", [one.rpo_exceeded for one in found]),
    ):  # fmt: skip
        family = GaugeMetricFamily(f"homeward_disk_{name}", words, labels=_LABELS)
        for one, value in zip(found, values, strict=True):
            if value is not None:
                family.add_metric([one.item, one.disk], float(value))
        yield family


class MetricsPort:
    """Serves from the moment it is made until `close`. Errors: `ListenFailed` (HW-MT-015)."""

    def __init__(self, watch: Watch, host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(_Disks(watch))
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ListenFailed(address=f"{host}:{port}", reason=error.strerror or str(error)) from error

    @property
    def port(self) -> int:
        """The one that is really listened on."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Nobody listens any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
