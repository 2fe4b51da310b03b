"""Quality: what a model scores on samples, kept sample by sample so that two models can be compared in pairs."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.data import metrics, scores
from optimizer.data.metrics import Metric
from optimizer.data.samples import Samples, cut
from optimizer.measure.stats import quality_interval
from optimizer.records import Quality
from optimizer.runtime import sessions
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store, key_of
from optimizer.workers.pool import Worker

Array = np.ndarray[Any, Any]

LARGEST_BATCH = 32
BATCH_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Judge:
    """A metric on one set of samples.

    ``reference`` is the source model, whose outputs some metrics compare with: a file of the store, which is named
    after the model's digest.
    """

    metric: Metric
    samples: Samples
    site: Site
    store: Store
    reference: Path | None = None

    def rows(self, path: Path, digest: str) -> Array:
        """What each sample contributes to the metric for the model at ``path``: float64 [samples, k].

        Remembered by model, data and metric. Raises a Fault when the model cannot run on a sample.
        """
        key = self._key(digest)
        cacheable = self.metric.function is None  # the code of a user's function may change between runs
        if cacheable and (kept := self.store.get_answer(key)) is not None:
            return np.asarray(kept)
        rows = self._all_at_once(path) if self.metric.whole else self._batch_by_batch(path)
        if cacheable:
            self.store.put_answer(key, rows)
        return rows

    def _key(self, digest: str) -> str:
        metric, site = self.metric, self.site
        judged = (metric.name, metric.output, metric.label, scoring_code())
        compared = self.reference.name if self.reference and metric.against == "reference" else ""
        return key_of("rows", digest, compared, self.samples.digest(), judged, site.provider, site.runtime)

    def _batch_by_batch(self, path: Path) -> Array:
        compared = self.reference if self.metric.against == "reference" else None
        reference = self._outputs(compared) if compared else None
        parts = []
        for start, real, outputs in self._outputs(path):
            labels = self.samples.labels_of(start, real)
            parts.append(self.metric.rows(outputs, labels, next(reference)[2] if reference else None))
        return np.concatenate(parts)

    def _all_at_once(self, path: Path) -> Array:
        """Some functions want every sample of the split in one call; their outputs are gathered in memory."""
        parts = [outputs for _, _, outputs in self._outputs(path)]
        names = [n for n, v in parts[0].items() if isinstance(v, np.ndarray) and v.ndim]
        joined = {n: np.concatenate([part[n] for part in parts]) for n in names}
        return self.metric.rows(joined, self.samples.labels_of(0, len(self.samples)))

    def _outputs(self, path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
        return outputs_of(path, self.samples, self.site)


@cache
def scoring_code() -> str:
    """Digest of the code that turns outputs into scores: what was scored by other code does not count."""
    return hashlib.sha256("".join(map(inspect.getsource, (metrics, scores))).encode()).hexdigest()


def outputs_of(path: Path, samples: Samples, site: Site) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Outputs batch by batch, padding cut away: first sample, number of samples, outputs by name."""
    start = 0
    with sessions.worker() as worker:
        batch = _batch(worker, path, samples, site)
        for feed, real in samples.feeds(batch):
            (outputs,) = sessions.run(worker, path, [feed], site)
            yield start, real, cut(outputs, real, samples.fed(batch))
            start += real


def _batch(worker: Worker, path: Path, samples: Samples, site: Site) -> int:
    """Samples per run that keep inputs and outputs of one batch within :data:`BATCH_BYTES`, by a first sample."""
    feed, count = next(iter(samples.feeds(1)))
    (outputs,) = sessions.run(worker, path, [feed], site)
    arrays = [a for a in (*feed.values(), *outputs.values()) if isinstance(a, np.ndarray)]
    weight = sum(a.nbytes for a in arrays) // max(1, count)
    return int(np.clip(BATCH_BYTES // max(1, weight), 1, LARGEST_BATCH))


def quality_of(metric: Metric, rows: Array) -> Quality:
    """The metric over ``rows`` with its two-sided 95 % interval."""
    found = quality_interval(metric, rows)
    return Quality(metric.name, found.value, found.low, found.high, metric.higher_is_better, len(rows))
