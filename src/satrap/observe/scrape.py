"""Metrics of a process as they were at one moment, read back from the text that Prometheus reads."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from satrap.errors import ServiceError

TEXT_BYTES_MAX = 16 << 20
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one process said of itself.

    >>> before = Scrape.of('rows{table="a"} 2\\nrows{table="b"} 3\\nsteps_total 10', at=0.0)
    >>> after = Scrape.of('rows{table="a"} 4\\nsteps_total 30', at=2.0)
    >>> before.total("rows"), after.rate("steps_total", before), after.total("rows", table="b")
    (5.0, 10.0, None)
    """

    at: float
    """Seconds of the monotonic clock."""
    values: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    """Name → labels → value."""

    @classmethod
    def of(cls, text: str, at: float | None = None) -> Scrape:
        """From the text format. Raises ServiceError where it is not that."""
        from prometheus_client.parser import text_string_to_metric_families

        values: dict[str, dict[Labels, float]] = {}
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    values.setdefault(sample.name, {})[frozenset(sample.labels.items())] = float(sample.value)
        except (ValueError, KeyError, IndexError) as e:
            raise ServiceError(f"these are not metrics in the text format of Prometheus: {e}") from e
        return cls(time.monotonic() if at is None else at, values)

    def total(self, name: str, **labels: str) -> float | None:
        """The sum over all labels beside those given; None where there is no such metric."""
        wanted = set(labels.items())
        found = [v for k, v in self.values.get(name, {}).items() if wanted <= k]
        return sum(found) if found else None

    def rate(self, name: str, before: Scrape | None, **labels: str) -> float | None:
        """Growth a second since an earlier scrape; None without one, or where the process has begun anew since."""
        now = self.total(name, **labels)
        then = None if before is None else before.total(name, **labels) or 0.0
        if now is None or then is None or before is None or self.at <= before.at or now < then:
            return None
        return (now - then) / (self.at - before.at)

    def quantile(self, name: str, q: float, before: Scrape | None = None, **labels: str) -> float | None:
        """The q-quantile of a histogram, of what came since an earlier scrape; None where nothing came.

        Interpolated inside a bucket, as Prometheus does; of the last, open one its lower bound.

        >>> text = 's_bucket{le="1"} 2\\ns_bucket{le="2"} 4\\ns_bucket{le="+Inf"} 4'
        >>> Scrape.of(text).quantile("s", 0.75)
        1.5
        """
        now, then = self._buckets(name, labels), {} if before is None else before._buckets(name, labels)
        counts = sorted((bound, n - then.get(bound, 0.0)) for bound, n in now.items())
        if not counts or counts[-1][1] <= 0:
            return None
        rank, low, below = q * counts[-1][1], 0.0, 0.0
        for bound, n in counts:
            if n >= rank and n > below:
                return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (n - below)
            low, below = bound, n
        return None

    def _buckets(self, name: str, labels: Mapping[str, str]) -> dict[float, float]:
        wanted = set(labels.items())
        out: dict[float, float] = {}
        for k, v in self.values.get(f"{name}_bucket", {}).items():
            if wanted <= k:
                bound = float(dict(k)["le"])
                out[bound] = out.get(bound, 0.0) + v
        return out


def scrape(address: str, timeout_s: float = 2.0) -> Scrape:
    """Asks a process at host:port. Raises ServiceError where it does not answer in time."""
    try:
        # Without the proxies of the environment: these are machines of one's own.
        with build_opener(ProxyHandler({})).open(f"http://{address}/metrics", timeout=timeout_s) as answer:
            text = answer.read(TEXT_BYTES_MAX).decode()
    except (URLError, OSError, UnicodeDecodeError, ValueError) as e:
        raise ServiceError(f"{address} does not tell its metrics: {getattr(e, 'reason', e)}") from e
    return Scrape.of(text)


def names_in(texts: Iterable[str]) -> set[str]:
    """Names of all metrics in some texts, with the endings that histograms give theirs."""
    return {name for text in texts for name in Scrape.of(text, at=0.0).values}
