"""The least that a conductor and the reaper need to be allowed in the namespace of the Jobs, as rules of a Role.

`python -m podium.components.launch.job_rbac [NAME]` prints both Roles for `kubectl apply`. The chart has the same,
and a test compares them.
"""

from __future__ import annotations

import json
import sys
from typing import Any

Rule = dict[str, list[str]]

CONDUCTOR_RULES: list[Rule] = [
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list", "watch", "delete"]},
    # get: the conductor's own pod, whose owner its Jobs get; list: how a pod ended, why one does not start
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
    # headless ones, by which the machines of a trial find each other
    {"apiGroups": [""], "resources": ["services"], "verbs": ["create"]},
]
REAPER_RULES: list[Rule] = [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "delete"]}]


def role(name: str, rules: list[Rule]) -> dict[str, Any]:
    """A Role with these rules."""
    return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules}


def main() -> None:
    """Print the Roles as one list."""
    name = sys.argv[1] if len(sys.argv) > 1 else "podium"
    roles = [role(f"{name}-conductor", CONDUCTOR_RULES), role(f"{name}-reaper", REAPER_RULES)]
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": roles}, indent=2))


if __name__ == "__main__":
    main()
