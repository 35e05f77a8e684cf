"""`train`: starts a run in its folder, from a study's run spec or from flags, and says by its exit code how it went."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import ValidationError

from podium.trainer.config import RunSpec
from podium.trainer.data.manifest import load_manifest
from podium.trainer.data_fit import check_data
from podium.trainer.errors import ConfigError, NotFoundError, UserError
from podium.trainer.inputs import CONFIG, read_run_spec, same_training
from podium.trainer.result import TrialResult
from podium.trainer.storage import Storage, open_storage

RESULT = "result.json"
CONFIG_FILE = CONFIG
STUDY_CHECKPOINTS = "checkpoints/"


@dataclass(frozen=True)
class Tracking:
    """Where a run that is used alone sends its metrics."""

    uri: str
    experiment: str


def run_in_study(folder_uri: str) -> TrialResult:
    """The trial whose folder holds `config.json`; goes on by itself from where an earlier attempt came."""
    folder = open_storage(folder_uri)
    spec = read_run_spec(folder_uri)
    done = _finished(folder)
    if done is not None:
        if done.fingerprint != spec.fingerprint:
            raise UserError(
                f"{folder.uri}: result.json is of fingerprint {done.fingerprint}, config.json says {spec.fingerprint}"
            )
        print(f"already done: {done.status.value}: {done.reason}", flush=True)
        return done
    from podium.trainer.run import train

    return train(spec, folder, checkpoint_prefix=STUDY_CHECKPOINTS, attempt=int(os.environ.get("PODIUM_ATTEMPT", "1")))


def run_alone(
    spec: RunSpec, output_dir: str, run_name: str, resume: str | None, tracking: Tracking | None
) -> TrialResult:
    """A run in `<output_dir>/<run_name>/`. Raises UserError where that folder holds a run and `resume` is not given."""
    check_data(spec.config, load_manifest(open_storage(spec.dataset)))
    folder = open_storage(output_dir)
    folder.probe()
    folder = folder.child(run_name)
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        _take_folder(folder, spec, resume)
    done = _finished(folder)
    if done is not None and resume == "auto" and done.steps == spec.config.steps:
        print(f"already done: {done.status.value}: {done.reason}", flush=True)
        return done
    from podium.trainer.reporting import BarReporter, LogReporter, Reporter
    from podium.trainer.run import train

    reporter: Reporter = BarReporter() if sys.stdout.isatty() and first else LogReporter()
    with _synced(folder, tracking if first else None, run_name):
        return train(spec, folder, run_name=run_name, resume=resume, reporter=reporter)


def _take_folder(folder: Storage, spec: RunSpec, resume: str | None) -> None:
    """Write config.json, unless the folder holds another run's."""
    try:
        former = read_run_spec(folder.uri)
    except ConfigError:
        former = None
    if former is not None and resume is None:
        raise UserError(f"{folder.uri} holds a run: --resume auto goes on with it, another --run-name starts a new one")
    if former is None or not same_training(former.config, spec.config) or former != spec:
        folder.write_json(CONFIG, spec.model_dump(mode="json"))


def _finished(folder: Storage) -> TrialResult | None:
    try:
        return TrialResult.model_validate_json(folder.read_bytes(RESULT))
    except NotFoundError:
        return None
    except ValidationError as error:
        raise ConfigError.from_validation(error, source=f"{folder.uri}/{RESULT}") from None


@contextmanager
def _synced(folder: Storage, tracking: Tracking | None, run_name: str) -> Iterator[None]:
    if tracking is None:
        yield
        return
    from podium.trainer.sync_thread import SyncThread

    with SyncThread(folder, tracking.uri, tracking.experiment, run_name):
        yield
