"""Looks at all of a step's pods together: why some do not run, and which image the others do."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from podium.components.launch.job_cluster import ApiError, Cluster, Object
from podium.components.launch.job_end import image_of
from podium.components.launch.job_held import Held
from podium.components.launch.job_names import JOB_NAME
from podium.components.launch.pending import explain

AFTER_SECONDS = 10.0
"""A pod that takes longer to run is asked why."""
FIRST_SECONDS, LONGEST_SECONDS = 15.0, 120.0
"""Between two looks at the pending pods: at first, and at most while nothing changes."""

_log = logging.getLogger("podium.jobs")


class JobLook:
    """At most two calls a look, whatever the number of Jobs, and no look while every pod runs."""

    def __init__(self, cluster: Cluster, selector: str) -> None:
        self._cluster, self._selector = cluster, selector
        self._next, self._pause = 0.0, FIRST_SECONDS
        self._asked_for_image = False
        self.image: str | None = None
        """The image that the step's pods run, with its digest; None until one runs."""

    def due(self, held: Collection[Held]) -> float | None:
        """When the next look is due; None while nothing is pending."""
        since = [each.since for each in held if each.is_pending]
        return max(self._next, min(since) + AFTER_SECONDS) if since else None

    def look(self, held: Collection[Held]) -> None:
        """Say of every Job that does not run why."""
        pending = [each for each in held if each.is_pending]
        before = {each.name: each.why for each in pending}
        now = time.monotonic()
        try:
            pods = self._cluster.list_pods(self._selector, "status.phase=Pending")
            # what a pod without a node waits for is in its status; all else is in events
            scheduled = [pod for pod in pods if pod["spec"].get("nodeName")]
            warnings: list[Object] = self._cluster.list_warnings() if scheduled or len(pods) < len(pending) else []
        except ApiError as error:
            _log.info("pending pods can't be explained: %s", error)
        else:
            for each in pending:
                assert each.job is not None
                each.explain(explain(each.job, pods, warnings), now)
        changed = any(before[each.name] != each.why for each in pending)
        self._pause = FIRST_SECONDS if changed else min(1.5 * self._pause, LONGEST_SECONDS)
        self._next = now + self._pause

    def find_image(self, held: Collection[Held]) -> None:
        """Ask the first Job that runs, or has run, for its image's digest: the others run the same."""
        running = next((each for each in held if each.runs or each.over is not None), None)
        if self._asked_for_image or running is None:
            return
        self._asked_for_image = True
        try:
            pods = self._cluster.list_pods(f"{JOB_NAME}={running.name}")
        except ApiError as error:
            _log.info("the image's digest is not known: %s", error)
            return
        self.image = next((image for pod in pods if (image := image_of(pod))), None)
