"""Prometheus metrics. No label value comes from a client, so their number is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ragalign.serving.admission import Admission

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class ReuseCollector(Collector):
    """The counts of the engine's reuse connector since the engine started.

    Attributes:
        counts: as `ragalign.reuse.connector.ReuseConnector.counts` names them; empty without a connector.
    """

    def __init__(self) -> None:
        self.counts: Mapping[str, int] = {}

    def collect(self) -> Iterator[Metric]:
        """Prometheus's view of `counts`."""
        if not self.counts:
            return
        pieces = CounterMetricFamily("ragalign_reuse_pieces", "Pieces loaded, by where they were.", labels=["tier"])
        moved = CounterMetricFamily("ragalign_reuse_bytes", "Bytes of keys and values moved.", labels=["move"])
        for tier in ("gpu", "memory", "disk"):
            pieces.add_metric([tier], self.counts.get(f"from_{tier}", 0))
        for move, name in (("from_disk", "bytes_read"), ("to_gpu", "bytes_copied"), ("to_cache", "bytes_loaded")):
            moved.add_metric([move], self.counts.get(name, 0))
        yield pieces
        yield moved
        for name, count, text in (
            ("ragalign_reuse_loaded_tokens", "tokens_loaded", "Tokens whose keys and values were loaded."),
            ("ragalign_reuse_evictions", "evictions", "Pieces evicted from memory."),
        ):
            yield CounterMetricFamily(name, text, value=self.counts.get(count, 0))
        held = self.counts.get("bytes_in_memory", 0)
        yield GaugeMetricFamily("ragalign_reuse_memory_bytes", "Bytes of pieces in host memory.", value=held)


class Metrics:
    """The metrics of a service, in their own registry."""

    def __init__(self, admission: Admission) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "ragalign_requests", "Requests that were answered.", ("endpoint", "status"), registry=registry
        )
        self.errors = Counter("ragalign_errors", "Errors, also those inside streams.", ("code",), registry=registry)
        self.disconnects = Counter("ragalign_disconnects", "Clients that left before their answer.", registry=registry)
        self.prompts = Counter("ragalign_prompts", "Packed prompts.", ("recipe", "reused"), registry=registry)
        self.prompt_tokens = Counter("ragalign_prompt_tokens", "Tokens of prompts.", ("recipe",), registry=registry)
        self.cached_tokens = Counter(
            "ragalign_cached_tokens", "Prompt tokens from the prefix cache.", ("recipe",), registry=registry
        )
        self.reused_tokens = Counter(
            "ragalign_reused_tokens", "Tokens of demonstrations that were reused.", ("recipe",), registry=registry
        )
        self.reuse_pieces = Counter(
            "ragalign_reuse_demonstrations",
            "Retrieved demonstrations by outcome: hit, miss (not kept), failed (not loaded) or other_prefix.",
            ("recipe", "outcome"),
            registry=registry,
        )
        self.reuse_engine = ReuseCollector()
        registry.register(self.reuse_engine)
        self.output_tokens = Counter("ragalign_output_tokens", "Tokens of answers.", ("recipe",), registry=registry)
        self.queue_s = self._seconds("ragalign_queue_seconds", "Waiting for a place.")
        self.retrieval_s = self._seconds("ragalign_retrieval_seconds", "Encoding and search, per batch.")
        self.packing_s = self._seconds("ragalign_packing_seconds", "Packing, per prompt.")
        self.first_token_s = self._seconds("ragalign_first_token_seconds", "From request to first text.")
        self.request_s = self._seconds("ragalign_request_seconds", "From request to the end of its answer.")
        self.reloads = Counter("ragalign_reloads", "Reloads of the index.", ("outcome",), registry=registry)
        running = Gauge("ragalign_requests_running", "Requests in progress.", registry=registry)
        running.set_function(lambda: admission.n_running)
        waiting = Gauge("ragalign_requests_waiting", "Requests in the queue.", registry=registry)
        waiting.set_function(lambda: admission.n_waiting)

    def render(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_SECONDS, registry=self._registry)
