"""One model looked into while it runs: where its time goes, and which ceiling of the machine holds it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.decide import roofline
from optimizer.faults import Fault
from optimizer.measure import ceilings
from optimizer.measure.profile import Anatomy, anatomy, counted
from optimizer.progress import Watcher
from optimizer.records import Latency, Profile, Roofline
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store
from optimizer.workers.pool import CallFailed, WorkerDied
from passes.kit.model import Model

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Dissected:
    """The profile of one model and what bounds it. Both are ``None`` where nothing can be told."""

    profile: Profile | None = None
    roofline: Roofline | None = None


def dissect(
    model: Model, feed: dict[str, Array], site: Site, latency: Latency | None, store: Store, watch: Watcher
) -> Dissected:
    """Profile ``model`` on one feed and hold its work against the ceilings that were measured here, if any were.

    A provider that cannot be profiled is noted, not raised.
    """
    try:
        found = anatomy(store.put_model(model), model, feed, site)
    except (Fault, WorkerDied, CallFailed) as error:
        watch.note(f"the runtime could not be profiled: {error}")
        return Dissected()
    if found is None:
        return Dissected()
    return Dissected(found.profile, _held(model, feed, site, latency, store, found))


def _held(
    model: Model, feed: dict[str, Array], site: Site, latency: Latency | None, store: Store, found: Anatomy
) -> Roofline | None:
    roofs = ceilings.kept(store, site)
    ceiling = roofline.at(roofs, site.provider, site.threads)
    if roofs is None or ceiling is None or latency is None:
        return None
    work = counted(model, feed, found.kernels)
    return roofline.hold(work, len(found.kernels), latency, roofs, ceiling, found.profile)
