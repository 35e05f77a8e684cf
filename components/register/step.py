"""What the step register does: the winner's model goes into MLflow's registry under the study's name.

`champion` is the alias only of what a verdict has proven; anything else is `candidate`, and leaves the champion be.
Earlier versions stay. `registration.json` is written last: with it the step does nothing, without it a version that an
earlier attempt made is found by its tags and used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from podium.components.register.log_model import log_version
from podium.components.study.finalists import Finalist, finalists, last_verdict
from podium.components.study.kubeflow import mlflow_tags
from podium.components.study.layout import REGISTRATION
from podium.components.study.run import Run
from podium.components.verdicts.verdict import Verdict
from podium.trainer.errors import PodiumError
from podium.trainer.mlflow_server import client, mlflow_uri

CHAMPION, CANDIDATE = "champion", "candidate"
MOST_TAG_CHARACTERS = 5000


def register(run: str, store: str) -> str:
    """Register the winner of a run's last verdict; `models:/<study>@<alias>`.

    Raises PodiumError where there is no winner with a model, or MLflow can't be reached: run it again.
    """
    opened = Run.open(store, run)
    done = opened.read_json(REGISTRATION)
    if done is not None:
        return str(done["uri"])
    verdict, winner = _winner(opened)
    tracking_uri = mlflow_uri(store)
    try:
        record = _register(opened, verdict, winner, tracking_uri)
    except PodiumError:
        raise
    except Exception as error:
        # MLflow raises what its transport, database and artifact store raise
        raise PodiumError(
            f"the model could not be registered with MLflow at {tracking_uri}: {type(error).__name__}: {error}"
        ) from error
    opened.ledger.append("registration", f"{record['model']}/{record['version']}", **record)
    opened.storage.write_json(REGISTRATION, record)
    print(f"{winner.variant} is registered as {record['uri']}, version {record['version']}", flush=True)
    return str(record["uri"])


def _winner(run: Run) -> tuple[Verdict, Finalist]:
    """The last verdict, and the finalist that it names; under a policy that ranks nothing, the first one."""
    verdict = last_verdict(run)
    if verdict is None or verdict.decision != "promote":
        said = "there is none" if verdict is None else f"it is {verdict.decision}"
        raise PodiumError(f"run {run.id}: nothing to register before the last verdict promotes a winner; {said}")
    able = finalists(run)
    found = next((each for each in able if verdict.winner in (None, each.variant)), None)
    if found is None:
        raise PodiumError(f"run {run.id}: the winner {verdict.winner} has no trained model")
    return verdict, found


def _register(run: Run, verdict: Verdict, winner: Finalist, tracking_uri: str) -> dict[str, Any]:
    registry, name = client(tracking_uri), run.study.name
    alias = CHAMPION if verdict.proven else CANDIDATE
    tags = lineage(run, verdict, winner)
    version = _existing(registry, name, tags) or log_version(run, winner, tracking_uri, tags)
    displaced = _displaced(registry, name, alias, version, tags)
    registry.set_registered_model_alias(name, alias, version)
    return {
        "variant": winner.variant,
        "proven": verdict.proven,
        "claim": verdict.claim,
        "alias": alias,
        "metric": verdict.metric,
        "value": getattr(winner.result, verdict.metric),
        "loss": winner.loss,
        "seed": winner.trial.seed,
        "model": name,
        "version": version,
        "uri": f"models:/{name}@{alias}",
        "tracking_uri": tracking_uri,
        "weights": f"{winner.trial.key.folder}/{winner.model_key}",
        "dataset": winner.trial.dataset_uri,
        "displaced": displaced,
    }


def lineage(run: Run, verdict: Verdict, winner: Finalist) -> dict[str, str]:
    """Tags of the model version: what it was made of and why it was chosen."""
    versions = winner.result.versions
    brief = verdict.model_dump_json(exclude={"results", "parameters"})
    tags = {
        "study": run.study.name,
        "study_hash": run.registered.study_hash,
        "profile": run.study.profile,
        "run_id": run.id,
        "stage": verdict.stage,
        "variant": winner.variant,
        "seed": str(winner.trial.seed),
        "fingerprint": winner.trial.fingerprint,
        "data_fingerprint": run.dataset_fingerprint(winner.trial.variant),
        "metric": verdict.metric,
        "value": repr(getattr(winner.result, verdict.metric)),
        "loss": repr(winner.loss),
        "proven": str(verdict.proven).lower(),
        "claim": verdict.claim,
        "reason": verdict.reason,
        # a verdict over hundreds of arms is longer than a tag can be; the model carries it whole as verdict.json
        "verdict": brief if len(brief) <= MOST_TAG_CHARACTERS else f"{run.uri}/verdicts/{verdict.stage}.json",
        "commit": (versions.commit if versions else None) or "unknown",
        "image": (versions.image if versions else None) or "none",
        "podium": (versions.podium if versions else None) or "unknown",
    }
    ours = {f"podium.{key}": value[:MOST_TAG_CHARACTERS] for key, value in tags.items()}
    return ours | mlflow_tags(run.storage)


def _existing(registry: Any, name: str, tags: Mapping[str, str]) -> str | None:
    """The version that an earlier attempt at this very registration made, if it came so far."""
    # the reason tells an amended verdict from the one before: each has a version with its own lineage
    identity = ("podium.run_id", "podium.variant", "podium.seed", "podium.fingerprint", "podium.reason")
    for version in registry.search_model_versions(f"name = '{name}'"):
        if all(version.tags.get(key) == tags[key] for key in identity):
            return str(version.version)
    return None


def _displaced(registry: Any, name: str, alias: str, version: str, tags: Mapping[str, str]) -> dict[str, Any] | None:
    """The version that had the alias before this one, if any: noted on this one before it takes the alias.

    With the difference in the metric, below 0 if this one is better; None where the two do not compare, by another
    metric or on other data.
    """
    noted = registry.get_model_version(name, version).tags.get(f"podium.displaced_{alias}")
    before = noted or registry.get_registered_model(name).aliases.get(alias)
    if before is None or str(before) == version:
        return None
    theirs = registry.get_model_version(name, str(before)).tags
    difference = _difference(tags, theirs)
    if noted is None:
        registry.set_model_version_tag(name, version, f"podium.displaced_{alias}", str(before))
        registry.set_model_version_tag(name, version, f"podium.displaced_{alias}_difference", repr(difference))
    kept = {key: theirs.get(f"podium.{key}") for key in ("run_id", "variant", "value")}
    return {"version": str(before), **kept, "difference": difference}


def _difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> float | None:
    alike = all(ours.get(f"podium.{key}") == theirs.get(f"podium.{key}") for key in ("metric", "data_fingerprint"))
    values = [tags.get("podium.value", "None") for tags in (ours, theirs)]
    if not alike or "None" in values:
        return None
    return float(values[0]) - float(values[1])
