"""The pre-registration: `study.yaml` of a run, written once before its first trial, and how runs are found."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import podium
from podium.components.study import layout, load
from podium.components.study.fingerprint import canonical, canonical_hash, run_id, study_hash
from podium.components.study.load import shipped
from podium.components.study.schema import Study
from podium.components.study.trials import datasets
from podium.trainer.builtin.config import RunSpec
from podium.trainer.builtin.data.prepare import PrepareConfig, data_fingerprint
from podium.trainer.builtin.training_path import trainer_digest
from podium.trainer.trial.errors import NotFoundError, Problem, StorageError, UserError
from podium.trainer.trial.section import Section
from podium.trainer.trial.storage import Storage, join_uri, normalise_uri, open_storage
from podium.trainer.trial.yaml_text import dump_yaml, parse_yaml

if TYPE_CHECKING:
    from podium.components.study.trials import Trial


# The state of the sources that a run is made from: commit, branch, and what was changed since that commit.

MAX_DIFF_BYTES = 2_000_000


class SourceState(Section):
    """What git says of the checkout that Podium runs from. Where it is installed, only the commit may be known."""

    commit: str | None = None
    branch: str | None = None
    changed: list[str] = []
    """Files that differ from the commit, untracked ones included."""
    diff: str = ""
    """The tracked ones as a patch, cut at 2 MB."""

    @property
    def dirty(self) -> bool:
        """Whether what runs is not what the commit says."""
        return bool(self.changed)

    @property
    def warning(self) -> str:
        """What to say before anything is paid; empty for a clean checkout."""
        if not self.changed:
            return ""
        shown = ", ".join(self.changed[:3]) + (", …" if len(self.changed) > 3 else "")
        files = "file" if len(self.changed) == 1 else "files"
        commit = (self.commit or "none")[:12]
        return (
            f"the checkout differs from commit {commit} in {len(self.changed)} {files} ({shown}): nobody else can run "
            "this again from the commit alone"
        )


@cache
def source_state(checkout: Path | None = None) -> SourceState:
    """The state of the checkout at or above a folder, by default Podium's own; PODIUM_COMMIT where there is none.

    Asked once a process: what it has imported does not change with the files.
    """
    folder = checkout or Path(__file__).resolve().parent
    top = _git(folder, "rev-parse", "--show-toplevel")
    # an installed package may lie inside somebody else's checkout: only a tree that holds our sources is ours
    if top is None or (checkout is None and not (Path(top.strip()) / "trainer" / "run.py").exists()):
        return SourceState(commit=os.environ.get("PODIUM_COMMIT"))
    status = _git(folder, "status", "--porcelain") or ""
    commit, branch = (_git(folder, "rev-parse", *name) for name in (["HEAD"], ["--abbrev-ref", "HEAD"]))
    return SourceState(
        commit=commit.strip() if commit else None,
        branch=branch.strip() if branch else None,
        changed=[line[3:] for line in status.splitlines()],
        diff=(_git(folder, "diff", "HEAD") or "")[:MAX_DIFF_BYTES] if status else "",
    )


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        asked = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout


LATEST = "latest.json"
"""Which run of a store was started last; beside the runs' folders, so that no clock need be compared."""


@dataclass(frozen=True)
class Registered:
    """What `study.yaml` of a run says."""

    run_id: str
    study: Study
    study_hash: str
    sha256: str
    """Of the resolved study as it was written, by `canonical_hash`."""
    datasets: Mapping[str, str]
    """Key of a dataset's config → its fingerprint."""
    trainer: str
    """Digest of the trainer's sources when the run was made."""
    submitted: str
    podium: str


def prepared_key(config: PrepareConfig) -> str:
    """A short name for a dataset's config; workers are no part of it."""
    return canonical_hash(config.model_dump(mode="json", exclude={"workers"}), 12)


def register_run(store_uri: str, study: Study, submitted: str, *, new: bool) -> Registered:
    """Find the study's run in the store or register one, and note it as the store's latest.

    Raises UserError for a store or a corpus that can't serve, before anything is written.
    """
    store = open_storage(store_uri)
    distinct = {prepared_key(config): config for config in datasets(study).values()}
    fingerprints = {key: data_fingerprint(config) for key, config in distinct.items()}
    store.probe()
    again = 0
    identity = run_id(study, fingerprints.values())
    while store.exists(f"{layout.run_key(following := _following(study, fingerprints, again))}/{layout.STUDY}"):
        again += 1
        identity = following
    if new and store.exists(f"{layout.run_key(identity)}/{layout.STUDY}"):
        identity = _following(study, fingerprints, again)
    resolved = study.model_dump(mode="json")
    record = {
        "format_version": 1,
        "run_id": identity,
        "study_hash": study_hash(study),
        "sha256": canonical_hash(resolved),
        "podium": podium.__version__,
        "trainer": trainer_digest(),
        "created": round(time.time(), 3),
        "datasets": fingerprints,
        "study": resolved,
        "submitted": submitted,
    }
    run = store.child(layout.run_key(identity))
    if not run.exists(layout.SOURCE):
        _note_source(run)
    for sha256, text in shipped(resolved).items():
        run.create(f"{layout.MODULES}/{sha256}.py", text.encode())
    run.create(layout.STUDY, dump_yaml(record).encode())
    return read_registered(store, identity)


def read_source(run: Storage) -> SourceState:
    """The state of the checkout that the run was made from; its diff is in a file of its own."""
    try:
        return SourceState.model_validate_json(run.read_bytes(layout.SOURCE))
    except NotFoundError:
        return SourceState()


def _note_source(run: Storage) -> None:
    state = source_state()
    if state.diff:
        run.create(layout.SOURCE_DIFF, state.diff.encode())
    run.create(layout.SOURCE, (state.model_dump_json(indent=2, exclude={"diff"}) + "\n").encode())


def note_latest(store: Storage, identity: str) -> None:
    """Remember which run of the store was started last."""
    store.write_json(f"{layout.RUNS}/{LATEST}", {"run_id": identity})


def read_registered(store: Storage, identity: str) -> Registered:
    """What `study.yaml` of a run says. Raises UserError where there is none, StorageError where it was changed."""
    key = f"{layout.run_key(identity)}/{layout.STUDY}"
    try:
        data = parse_yaml(store.read_text(key), key)
    except NotFoundError:
        raise UserError(f"no run {identity!r} in {store.uri}") from None
    study = load.Study.model_validate(data["study"])
    # over what was written, not over what this version makes of it: a field that came since has changed nothing
    if canonical_hash(data["study"]) != data["sha256"]:
        raise StorageError(f"{join_uri(store.uri, key)}: was changed after the run began; its sha256 does not match")
    return Registered(
        run_id=data["run_id"],
        study=study,
        study_hash=data["study_hash"],
        sha256=data["sha256"],
        datasets=data["datasets"],
        trainer=data["trainer"],
        submitted=data["submitted"],
        podium=data["podium"],
    )


def find_run(store_uri: str, identity: str | None) -> tuple[str, str]:
    """The store and the id of a run: by id, the store's latest, or a run's own folder. Raises UserError for none."""
    uri = normalise_uri(store_uri)
    parent, _, name = uri.rpartition("/")
    if identity is None and parent.endswith(f"/{layout.RUNS}") and open_storage(uri).exists(layout.STUDY):
        return parent.removesuffix(f"/{layout.RUNS}"), name
    store = open_storage(uri)
    if identity is not None:
        if not store.exists(f"{layout.run_key(identity)}/{layout.STUDY}"):
            known = run_ids(store)
            raise UserError(f"no run {identity!r} in {uri}; it has: {', '.join(known) or 'none'}")
        return uri, identity
    try:
        latest = str(store.read_json(f"{layout.RUNS}/{LATEST}")["run_id"])
        if store.exists(f"{layout.run_key(latest)}/{layout.STUDY}"):
            return uri, latest
    except NotFoundError:
        pass
    ids = run_ids(store)
    if not ids:
        raise UserError(f"no run in {uri}: `podium run STUDY --store {store_uri}` makes one")
    return uri, ids[-1]


def run_ids(store: Storage) -> list[str]:
    """Every run of a store, the one registered last at the end."""
    found = []
    for key in store.list(layout.RUNS):
        parts = key.split("/")
        if len(parts) == 3 and parts[2] == layout.STUDY:
            created = parse_yaml(store.read_text(key), key)["created"]
            found.append((created, parts[1]))
    return [identity for _, identity in sorted(found)]


def check_unchanged(storage: Storage, trials: Iterable[Trial], registered: Registered) -> None:
    """Refuse a run of which a trial was made from something else than would be used now, naming what changed.

    Raises UserError. Results of two recipes are never mixed in one ranking.
    """
    started = {key.removesuffix("/config.json") for key in storage.list("trials") if key.endswith("/config.json")}
    problems = []
    for trial in trials:
        if trial.key.folder not in started:
            continue
        spec = RunSpec.model_validate_json(storage.read_bytes(f"{trial.key.folder}/config.json"))
        if spec.fingerprint != trial.fingerprint:
            problems.append(Problem(trial.key.name, _what_changed(spec, trial, registered)))
    if problems:
        shown = problems[:5] + ([Problem("", f"and {len(problems) - 5} more")] if len(problems) > 5 else [])
        advice = Problem("", "--new makes another run beside this one; its results stay as they are")
        raise UserError([*shown, advice], source=f"run {registered.run_id}")


def _what_changed(spec: RunSpec, trial: Trial, registered: Registered) -> str:
    before, now = _flat(canonical(spec.config)), _flat(canonical(trial.config))
    fields = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if fields:
        changes = ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in fields[:5])
        return f"its config changed: {changes}"
    if spec.dataset.rpartition("/")[2] != trial.dataset_uri.rpartition("/")[2]:
        return "its data changed"
    if registered.trainer != trainer_digest():
        return f"the trainer's sources changed (digest {registered.trainer}, now {trainer_digest()})"
    return "what its kill rule compares with changed"


def _following(study: Study, fingerprints: Mapping[str, str], again: int) -> str:
    return run_id(study, fingerprints.values(), again=again)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, below in value.items():
        found |= _flat(below, f"{prefix}.{key}" if prefix else key)
    return found
