"""A trial's lease whose holder is known to have ended: removed, so that the next attempt need not wait it out.

On S3 a holder on another host is dead only after its counter has stood still for 50 seconds. But a pod that Kubernetes
has seen end is dead now, and a pod's host name is never another's.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from podium.trainer.errors import NotFoundError
from podium.trainer.storage import Storage


def free_dead_lease(storage: Storage, key: str, hosts: Collection[str]) -> None:
    """Remove the lease `key` if one of these hosts, which have ended, holds it."""
    if not hosts:
        return
    with suppress(NotFoundError):
        holder = str(storage.read_json(key)["host"]).partition("/")[0]
        if holder in hosts:
            storage.delete(key)
