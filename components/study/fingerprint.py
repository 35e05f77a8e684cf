"""Identities: what is hashed, and how. Nothing is hashed that has no stable serialisation.

A run's id covers the study and the content of its data, never a path. A trial's fingerprint covers its resolved config,
its data, the code of the training path and, where it has one, the reference that may kill it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from pydantic import BaseModel

from podium.components.study.schema import Study
from podium.trainer.builtin.config import TrainConfig
from podium.trainer.builtin.training_path import trainer_digest

RUN_ID_DIGITS = 8
FINGERPRINT_DIGITS = 16


def canonical(value: Any) -> Any:
    """A value as plain JSON with one spelling. Raises TypeError for what has no stable one.

    Mappings have no order here; where order has a meaning, give pairs.
    """
    if isinstance(value, Enum):
        return canonical(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"a number that is not finite can't be part of an identity, got {value!r}")
        return value
    if isinstance(value, BaseModel):
        return canonical({name: getattr(value, name) for name in type(value).model_fields})
    if isinstance(value, Mapping):
        strange = [key for key in value if not isinstance(key, str)]
        if strange:
            raise TypeError(f"keys of an identity must be text, got {strange[0]!r}")
        return {key: canonical(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    raise TypeError(f"a {type(value).__name__} has no stable serialisation and can't be part of an identity: {value!r}")


def canonical_hash(value: Any, digits: int = 64) -> str:
    """sha256 of the canonical JSON, in hex. Raises TypeError for what has no stable serialisation."""
    text = json.dumps(canonical(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def trial_fingerprint(
    config: TrainConfig,
    data_fingerprint: str,
    *,
    run_id: str | None = None,
    references: Sequence[str] = (),
    trainer: str | None = None,
) -> str:
    """A trial's identity. `run_id` is given for proof trials, whose results are no other run's.

    `references` are the fingerprints of the trials that its kill rule compares with: another baseline, another end.
    """
    identity = {
        "config": config,
        "data": data_fingerprint,
        "trainer": trainer or trainer_digest(),
        "run": run_id,
        "references": list(references),
    }
    return canonical_hash(identity, FINGERPRINT_DIGITS)


def study_hash(study: Study) -> str:
    """The study's identity: everything in it but its profile's name and where its corpus lies.

    The order of stages and axes has a meaning (seeds, names), that of variants and of fields has none.
    """
    identity: dict[str, Any] = {name: getattr(study, name) for name in Study.model_fields}
    del identity["profile"]
    identity["data"] = {
        "corpus": study.data.corpus.model_copy(update={"path": None}),
        "vocab_size": study.data.vocab_size,
    }
    identity["stages"] = list(study.stages.items())
    identity["axes"] = list(study.axes.items())
    return canonical_hash(identity)


def run_id(study: Study, data_fingerprints: Iterable[str], *, again: int = 0) -> str:
    """Study name and 8 hex of its hash with its data's; `again` counts the runs that `--new` made beside the first."""
    identity = [study_hash(study), sorted(set(data_fingerprints)), again]
    return f"{study.name}-{canonical_hash(identity, RUN_ID_DIGITS)}"
