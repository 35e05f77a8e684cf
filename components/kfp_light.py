"""KFP's DSL and its Kubernetes settings, without the imports that neither uses.

`import kfp` loads KFP's HTTP client too, and `kfp.kubernetes` the Kubernetes client with its 700 models for one check
of a setting that Podium does not make. `from kfp import dsl, local, kubernetes` takes 0.98 s of CPU, from here 0.24 s
(best of four): more than compiling a study of 1,000 variants takes. `kfp.client` can still be imported. Where kfp is
loaded already, this changes nothing.
"""

import os
import sys
from types import ModuleType
from typing import Any

__all__ = ["dsl", "kubernetes", "local"]

_RUNTIME = "_KFP_RUNTIME"
"""KFP's own switch, set in its steps: leave out what compiling and submitting take."""


def _import_dsl() -> tuple[Any, Any]:
    light = "kfp" not in sys.modules and _RUNTIME not in os.environ
    if light:
        os.environ[_RUNTIME] = "true"
    try:
        import kfp  # noqa: F401
    finally:
        if light:
            del os.environ[_RUNTIME]
    from kfp import dsl, local  # in full: only the package around them is light

    return dsl, local


def _import_kubernetes() -> Any:
    if "kubernetes" in sys.modules:
        from kfp import kubernetes

        return kubernetes
    stand_in = ModuleType("kubernetes")
    stand_in.client = ModuleType("kubernetes.client")  # type: ignore[attr-defined]
    sys.modules["kubernetes"] = stand_in
    try:
        from kfp import kubernetes
    finally:
        del sys.modules["kubernetes"]
    # The one module that holds on to the stand-in: its check of node affinities, which Podium does not set.
    del sys.modules["kfp.kubernetes.node_affinity"].client
    return kubernetes


dsl, local = _import_dsl()
kubernetes = _import_kubernetes()
