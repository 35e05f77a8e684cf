"""What is asked of the API server for one Job at a time, and what a refusal means.

What passes (a quota, a server that restarts) is owed and tried again; what does not is the user's to mend.
"""

from __future__ import annotations

import logging

from podium.components.launch.job_cluster import ApiError, Cluster, Object
from podium.components.launch.job_end import end_of, held_seconds, host_of
from podium.components.launch.job_held import Held
from podium.components.launch.job_manifest import CONTAINER, JobMaker
from podium.components.launch.job_names import JOB_NAME
from podium.components.launch.job_watch import slim
from podium.components.launch.launcher import TAIL_LINES
from podium.components.launch.pending import Pending
from podium.trainer.errors import UserError

QUOTA_SECONDS = 15.0
"""Between two tries of a Job for which the namespace has no quota."""
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 15.0
"""Back-off of a call to a server that does not answer."""

_log = logging.getLogger("podium.jobs")


class JobCalls:
    """Creates, finds, deletes and questions Jobs. Each call leaves in `held` what came of it, or when it is due again.

    All raise UserError for what the cluster refuses for good.
    """

    def __init__(self, cluster: Cluster, maker: JobMaker) -> None:
        self._cluster, self._maker = cluster, maker

    def create(self, held: Held) -> None:
        """Create the Job; where it is there already, adopt it: an earlier conductor's, or our own lost answer's."""
        try:
            job = self._cluster.create_job(self._maker.job(held.task))
        except ApiError as error:
            if error.status == 409:
                self._adopt_existing(held)
            elif error.is_quota:
                held.wait(Pending(f"the namespace's quota is used up: {error}"), QUOTA_SECONDS)
            else:
                self._later(held, error)
            return
        held.see(slim(job))
        self._owe_service(held)

    def adopt(self, held: Held, job: Object) -> None:
        """Follow a Job that somebody else created."""
        held.adopted = True
        held.see(job)
        self._owe_service(held)

    def make_service(self, held: Held) -> None:
        """Create the Service that is owed."""
        assert held.service is not None
        try:
            self._cluster.create_service(held.service)
            held.service = None
        except ApiError as error:
            self._later(held, error)

    def delete(self, held: Held) -> None:
        """Have the Job go; its pods are told to end."""
        held.deleting = True
        try:
            self._cluster.delete_job(held.name)
            held.deleting = False
        except ApiError as error:
            self._later(held, error)

    def find_end(self, held: Held) -> None:
        """How a Job that is over ended. One that succeeded while we looked on needs no questions."""
        assert held.over is not None
        pods: list[Object] = []
        end = end_of(held.over, [])
        if end.code != 0 or held.adopted:
            try:
                pods = self._cluster.list_pods(f"{JOB_NAME}={held.name}")
            except ApiError as error:
                self._later(held, error)
                return
            end = end_of(held.over, pods)
        seconds = [each for pod in pods if (each := held_seconds(pod)) is not None]
        if held.adopted and seconds:
            held.measured = max(seconds)
        held.hosts = tuple(host_of(pod) for pod in pods)
        held.tail = end.message.splitlines()[-TAIL_LINES:]
        if end.pod is not None and end.code not in (0, None):
            try:
                held.tail = self._cluster.read_log(end.pod, CONTAINER, TAIL_LINES)
            except ApiError as error:
                _log.info("the log of %s can't be read: %s", end.pod, error)
        held.end = end

    def _adopt_existing(self, held: Held) -> None:
        try:
            self.adopt(held, slim(self._cluster.read_job(held.name)))
        except ApiError as error:
            if error.status == 404:  # gone meanwhile: create it again
                held.back_off(held.why, FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)
            else:
                self._later(held, error)

    def _owe_service(self, held: Held) -> None:
        if self._maker.resources.nodes > 1 and held.over is None and held.job is not None:
            held.service = self._maker.service(held.name, held.job["metadata"]["uid"])
            self.make_service(held)

    def _later(self, held: Held, error: ApiError) -> None:
        if not error.passes:
            hint = ""
            if error.status in (401, 403):
                hint = " (the rights that a conductor needs: python -m podium.components.launch.job_rbac)"
            raise UserError(f"the cluster refuses the Job of {held.task.name}: {error}{hint}") from None
        held.back_off(held.why or Pending(str(error)), FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)
