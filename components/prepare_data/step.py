"""What the step prepare_data does. Doing it again finds everything done and changes nothing.

Whatever a user can get wrong is refused here, before anything is paid for: the study, the profile, inputs that
contradict it, the store, the corpus, and splits shorter than one sequence.
"""

from __future__ import annotations

import json
import os

from podium.components.launch.job_manifest import check_jobs
from podium.components.prepare_data.gpus import gpu_notes, gpu_problems
from podium.components.step_process import PIPELINE_PID
from podium.components.study.design import Overrides, Selection, check_selection, variants
from podium.components.study.layout import note_run
from podium.components.study.load import load_study
from podium.components.study.run import Run
from podium.components.study.schema import Study
from podium.components.study.trials import dataset_config, datasets, variant_config
from podium.components.study.verdict import VariantRef
from podium.trainer.builtin.data.manifest import check_lengths
from podium.trainer.builtin.data.prepare import prepare as prepare_dataset
from podium.trainer.trial.errors import NotFoundError, Problem, UserError
from podium.trainer.trial.section import format_count, parse_usd
from podium.trainer.trial.storage import open_storage, split_uri
from podium.trainer.trial.sync import initialise, mlflow_uri

LAUNCHERS = ("process", "job")


def prepare(
    study: str,
    profile: str,
    store: str,
    budget: str,
    gpus: str,
    launcher: str,
    selection: str,
    compiled_gpus: str = "",
    kubeflow_run: str = "",
) -> str:
    """Make the study a run of the store and its data ready; the run's id.

    `study` is a YAML text, or the URI of one; `budget` dollars or empty for the study's own; `gpus` the pipeline's GPU
    inputs as `stage=count,…`, empty where there are none, `compiled_gpus` the same as compiled; `selection` JSON or
    empty; `kubeflow_run` the id of Kubeflow's run. Raises UserError listing every problem, StorageError where the store
    can't be written.
    """
    chosen, problems = parse_selection(selection)
    usd, more = _parse_budget(budget)
    problems += more
    if launcher not in LAUNCHERS:
        problems.append(Problem("launcher", f"must be one of {', '.join(LAUNCHERS)}, got {launcher!r}"))
    text = read_study_input(study)
    loaded = load_study(text, profile=profile, overrides=Overrides(budget_usd=usd))
    problems += gpu_problems(loaded, gpus, launcher, chosen.parallel, compiled_gpus)
    try:
        check_selection(loaded, chosen)
    except UserError as error:
        problems += error.problems
    if launcher == "job":
        try:
            check_jobs(loaded, store)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)

    run = Run.create(store, loaded, profile, chosen, text)
    print(f"run {run.id} in {run.uri}", flush=True)
    for note in gpu_notes(loaded, gpus, launcher, chosen.parallel, compiled_gpus):
        print(f"note: {note}", flush=True)
    if kubeflow_run and PIPELINE_PID not in os.environ:  # kfp.local numbers its runs too
        note_run(run.store, kubeflow_run, run.id)
    prepare_datasets(run)
    initialise(mlflow_uri(store))
    run.ledger.append("run_started", run.id, study=loaded.name, profile=loaded.profile, store=run.store_uri)
    return run.id


def read_study_input(study: str) -> str:
    """The study's text: the input itself, or the object at the URI that it is. Raises UserError for none there."""
    if "\n" in study or "://" not in study:
        return study
    folder, name = split_uri(study.strip())
    try:
        return open_storage(folder).read_text(name)
    except NotFoundError:
        raise UserError(Problem("study", f"no file at {study.strip()}")) from None


def parse_selection(text: str) -> tuple[Selection, list[Problem]]:
    """The selection in a pipeline input, and what is wrong with it: here a person may have typed it."""
    try:
        data = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError as error:
        return Selection(), [Problem("selection", f"must be JSON or empty: {error}")]
    allowed = tuple(Selection.__dataclass_fields__)
    if not isinstance(data, dict) or set(data) - set(allowed):
        return Selection(), [Problem("selection", f"must be a JSON object of {', '.join(allowed)}, got {text!r}")]
    return Selection.from_json(text), []


def prepare_datasets(run: Run) -> None:
    """Prepare every dataset that the study may train on, and check that each split holds one sequence.

    Raises DataError.
    """
    prepared = {}
    for config in datasets(run.study).values():
        key = config.model_dump_json(exclude={"workers"})
        if key not in prepared:
            prepared[key] = prepare_dataset(config, run.store)
            tokens = ", ".join(f"{name} {format_count(split.tokens)}" for name, split in prepared[key].splits.items())
            print(f"data {prepared[key].fingerprint}: {tokens} tokens", flush=True)
    checked = set()
    for stage in run.stages:
        for variant in run.stage_variants(stage) or variants(run.study):
            checked_now = _length_check(run.study, stage, variant)
            if checked_now not in checked:
                checked.add(checked_now)
                key, sequence_length, splits = checked_now
                check_lengths(prepared[key], sequence_length, splits)


def _length_check(study: Study, stage: str, variant: VariantRef) -> tuple[str, int, tuple[str, str]]:
    """Which dataset must hold sequences of which length in which splits."""
    data = variant_config(study, stage, variant).data
    key = dataset_config(study, variant).model_dump_json(exclude={"workers"})
    return key, data.sequence_length, (data.train_split, data.validation_split)


def _parse_budget(budget: str) -> tuple[float | None, list[Problem]]:
    if not budget.strip():
        return None, []
    try:
        usd = float(parse_usd(budget))
    except ValueError as error:
        return None, [Problem("budget", str(error))]
    return (usd, []) if usd > 0 else (None, [Problem("budget", f"must be more than 0 dollars, got {budget!r}")])
