"""A usable model within the first minutes: one feasible network, trained alone, before the search has found anything."""

from __future__ import annotations

from sartor.deploy.verify import broken
from sartor.goals import OF_ACCURACY
from sartor.job.conclude import partial
from sartor.job.context import OF_FILES, Job
from sartor.job.finish import make
from sartor.job.workers import Task


def first_model(job: Job) -> None:
    """Train, export and measure the network with the most multiplications among sampled ones that are predicted to keep the limits.

    It lies in models/first until the search has delivered better ones. Nothing is delivered if its measured figures break a limit.
    """
    if "model:first" in job.state or "no_first" in job.state:
        return
    rng = job.rng(3)
    light = 0.3 * job.net.costs(job.net.largest)["macs"]
    pool = [job.net.smallest, *(job.net.space.sample(rng) for _ in range(300))]
    limits = [limit for limit in job.goals.limits if limit.metric not in (*OF_ACCURACY, *OF_FILES)]
    costs = [(job.predicted(arch), arch) for arch in pool]
    fitting = [(c, a) for c, a in costs if c["macs"] <= light and all(limit.excess(c) <= -0.05 for limit in limits)]
    if not fitting:
        job.state.put("no_first")
        return
    arch = max(fitting, key=lambda pair: pair[0]["macs"])[1]
    task = Task("first", "scratch", dict(job.net.space.labels(arch)), seconds=job.plan.first)
    with job.state.timing("first"):
        record = make(job, task, "search", {})
    if not broken([limit for limit in job.goals.limits if limit.metric not in OF_ACCURACY], record["metrics"]):
        partial(job)
