"""The study: one YAML file that says the data, the base config, the variants, the stages and the budget.

`axes`, `variants`, `stages` and `profiles` are mappings by name, in order, so that a profile can override one entry;
in a profile, `null` for an entry of the first three removes it.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, Self, Union

from pydantic import (
    AfterValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializeAsAny,
    TypeAdapter,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from podium.trainer.builtin.data.corpus import CorpusConfig
from podium.trainer.trial.section import Count, Section, Usd
from podium.trainer.trial.stopping import StopRules

# Groups of a stage's trials as a study declares them: rows of axis values, and what a group takes from another.


class Group(Section):
    """Trials that belong together, a row each. A group that needs another's result waits for it: it is a later wave."""

    purpose: str = ""
    after: list[str] = []
    """Groups that must be over first."""
    takes: dict[str, str] = {}
    """Axis → the group whose best value of it every row has; such a group comes after that one."""
    rows: list[dict[str, Any]] = Field(min_length=1)
    """Axis → value, a trial each. What a row leaves open is the base config's. A row that repeats a configuration of
    the stage is a replicate of it, with the next seed."""

    @property
    def waits_for(self) -> set[str]:
        """The groups that must be over first."""
        return {*self.after, *self.takes.values()}


MAX_SEEDS_BY_COUNT = 10
NAME = r"^[a-z0-9][a-z0-9._-]*$"


class StudyData(Section):
    """The corpus and its tokenizer. `data.vocab_size` and `data.corpus.*` can be axes like any config field."""

    corpus: CorpusConfig = CorpusConfig(source="builtin")
    vocab_size: Count = Field(gt=256, le=65536)
    """Vocabulary of the byte-level BPE, and rows of the model's embedding."""
    tokenizer: str | None = None
    """Where a tokenizer.json is that is taken instead of training one: `gpt2` (the hub), a folder, or s3://…"""


class Axis(Section):
    """One config field with values."""

    field: str
    """Dotted field of the config (`model.allocation.embedding_share`) or of the data (`data.vocab_size`)."""
    values: list[Any] = Field(min_length=1)
    names: list[str] | None = None
    """Names of the variants, one a value; made from the axis and the value by default."""
    title: str = ""
    """What a table or a plot calls it."""
    key: str | None = None
    """The name under which results carry the value; the field's last part by default."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.names is not None and len(self.names) != len(self.values):
            raise ValueError(f"names must be one a value, got {len(self.names)} names for {len(self.values)} values")
        return self


class VariantSpec(Section):
    """A named set of overrides of config fields."""

    description: str = ""
    modification: Literal["none", "hyperparameter", "architecture", "training"] = "hyperparameter"
    details: str = ""
    overrides: dict[str, Any] = {}
    """Dotted field → value."""


class Recorded(Section):
    """A figure for the baseline that was measured elsewhere, for one stage."""

    mean: float
    sd: float | None = None
    n: int | None = None
    source: str


class Baseline(Section):
    """The variant that others are compared with."""

    variant: str = "baseline"
    recorded: dict[str, Recorded] = {}
    """Stage → the recorded figure, used there instead of running the baseline."""


class Budget(Section):
    """How long a stage trains each trial: give one."""

    tokens: Count | None = Field(default=None, gt=0)
    steps: Count | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.tokens is None) == (self.steps is None):
            raise ValueError(f"give tokens or steps, got {self.tokens!r} and {self.steps!r}")
        return self


class Resources(Section):
    """What a stage's trials run on."""

    gpus_per_trial: int = Field(default=0, ge=0)
    """GPUs of one trial; 0 is a CPU, counted as one device."""
    parallel: int = Field(default=1, gt=0)
    """Trials at once; the stage's pod requests gpus_per_trial × parallel (launcher: process)."""
    nodes: int = Field(default=1, gt=0)
    """Machines that a trial is spread over, its GPUs in equal parts (launcher: job); without GPUs a process on each."""
    share_cpu: bool = False
    """Trials may run beside each other on one CPU though the stage ranks them by time: said, since times then are of a
    busy machine. A GPU is never shared."""
    gpu_class: str | None = None
    """Name of a GPU type; the chart or the site maps it to node selectors and tolerations."""
    cpu: str | None = None
    """Processors of each machine's part, as a Kubernetes quantity (launcher: job)."""
    memory: str | None = None
    """Memory of each machine's part, as a Kubernetes quantity (launcher: job)."""

    @property
    def devices(self) -> int:
        """Devices that a trial holds and pays for: its GPUs, or a processor on each machine."""
        return max(self.gpus_per_trial, self.nodes)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gpus_per_trial % self.nodes:
            raise ValueError(
                f"gpus_per_trial must be a multiple of nodes = {self.nodes}, so that every machine gives as many, "
                f"got {self.gpus_per_trial}"
            )
        return self


class Price(Section):
    """What one run costs: a price per run, or a price per device-hour with the expected minutes."""

    usd_per_run: Usd | None = Field(default=None, ge=0)
    usd_per_gpu_hour: Usd | None = Field(default=None, ge=0)
    """Filled from the site file by `gpu_class` where it is left out."""
    minutes_per_run: float | None = Field(default=None, gt=0)
    """Expected wall-clock minutes of one trial on its devices."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.usd_per_run is not None and self.usd_per_gpu_hour is not None:
            raise ValueError("give usd_per_run, or usd_per_gpu_hour with minutes_per_run, got both prices")
        return self


class Expected(Section):
    """What a proof is planned on: with it `podium plan` says how likely the proof succeeds."""

    gap: float = Field(gt=0)
    """How much better the winner is expected to be, in the metric's unit."""
    sigma: float = Field(gt=0)
    """SD over seeds, in the same unit."""
    source: str
    """Where they come from: a past run, a paper."""


# How a stage is decided. Each policy is a module of `podium.components.policies`, found by that package's name: a study
# is read by what a policy declares, and never imports one.

Metric = Literal[
    "final_val_loss", "final_val_perplexity", "final_bits_per_byte", "best_val_loss", "time_to_target_seconds"
]
"""What a trial's `result.json` measures and a policy can rank by. Lower is better for every one of them."""

TIME: Metric = "time_to_target_seconds"
"""Compared only between trials that had a device of one type to themselves."""

POLICIES = "podium.components.policies"
"""The package whose modules are imported when the first study is read; each may define a policy."""


class Promotion(Section):
    """What a study declares of a stage's promotion policy; `study.policy.Policy` adds what the policy answers.

    A subclass whose `policy` has a default is a policy that studies can name.
    """

    metric: Metric = "final_val_loss"
    policy: str

    place: ClassVar[int] = 100
    """Order of the policies in messages: the lowest first, equal ones in the order in which they were defined."""
    stand_ins: ClassVar[tuple[str, ...]] = ()
    """Fields that declare a figure in the baseline's place: the command line can ask for the baseline instead."""
    _named: ClassVar[dict[str, type[Promotion]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Enter the class among the policies."""
        name = cls.model_fields["policy"].default
        if not isinstance(name, str):
            return  # a base class of policies
        known = Promotion._named.setdefault(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"two policies are named {name!r}: {known.__module__} and {cls.__module__}")
        Promotion._named[name] = cls


def policies() -> dict[str, type[Promotion]]:
    """Every policy by its name: those of the package `POLICIES`, and those that other modules have defined."""
    _discover()
    return dict(sorted(Promotion._named.items(), key=lambda item: item[1].place))


@cache
def _discover() -> None:
    for module in pkgutil.iter_modules(importlib.import_module(POLICIES).__path__):
        importlib.import_module(f"{POLICIES}.{module.name}")


@cache
def _union(members: tuple[type[Promotion], ...]) -> TypeAdapter[Promotion]:
    union: Any = Annotated[Union[members], Field(discriminator="policy")]  # noqa: UP007 - its members are not known before
    return TypeAdapter(union)


class _ByName:
    """Validates a promotion by the union of all policies that are known when a study is read.

    The union is made then, not with the schema, so that the study imports no policy and a policy needs no list. What it
    raises inside of the validator keeps its places within the study.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        declared = handler(source)
        return core_schema.no_info_plain_validator_function(_of_name, serialization=declared["serialization"])

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(_adapter().core_schema)


def _of_name(value: Any) -> Promotion:
    return _adapter().validate_python(value)


def _adapter() -> TypeAdapter[Promotion]:
    return _union(tuple(policies().values()))


class Stage(Section):
    """A budget, seeds, resources, stop rules and one promotion policy."""

    purpose: str = ""
    budget: Budget
    seeds: int | list[int] = 1
    """A number of seeds (at most 10; base_seed + 10 × stage index + i), or a list."""
    resources: Resources = Resources()
    price: Price = Price()
    overrides: dict[str, Any] = {}
    """Dotted config field → value, for all trials of this stage; a variant's own override goes over it."""
    stop: StopRules = StopRules()
    groups: dict[str, Group] = {}
    """Of the first stage, with `design: groups`: its trials, by name, in order."""
    promotion: Annotated[SerializeAsAny[Promotion], _ByName()]
    min_seeds: int = Field(default=1, gt=0)
    """Finished seeds that an arm needs to be ranked."""
    max_broken: int = Field(default=0, ge=0)
    """Broken trials that the stage may have and still give a verdict."""
    retries: int = Field(default=2, ge=0)
    """Times a crashed trial is started again before it is broken."""
    approval: Literal["none", "required"] = "none"
    proof: bool = False
    """A stage whose verdict may prove the winner: fresh seeds, nothing reused from other runs."""
    expected: Expected | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.seeds, int) and not 1 <= self.seeds <= MAX_SEEDS_BY_COUNT:
            raise ValueError(f"seeds must be 1 to {MAX_SEEDS_BY_COUNT}, or a list of seeds, got {self.seeds}")
        if isinstance(self.seeds, list) and (not self.seeds or len(set(self.seeds)) != len(self.seeds)):
            raise ValueError(f"seeds must be different numbers, at least one, got {self.seeds}")
        return self


class Shakedown(Section):
    """The gate before any paid stage."""

    steps: int = Field(default=20, ge=4)
    """Training steps of its run, half of them after a resume."""
    price: Price = Price()


class StudyEvaluation(Section):
    """What is measured of each finalist, with the device to itself."""

    smallbench: str | None = "hub"
    """`hub`, a folder or URI with the tasks' files, or null to leave it out."""
    latency: bool = True
    throughput: bool = True
    max_batches: int | None = Field(default=None, gt=0)
    price: Price = Price()


class Production(Section):
    """The training at full scale that the study is for: the winner's configuration, with these changes."""

    tokens: Count = Field(gt=0)
    overrides: dict[str, Any] = {}
    """Dotted config field → value."""


class Champion(Section):
    """Which model is evaluated and registered, where that is not the last stage's winner at its last step."""

    stage: str | None = None
    """The stage whose best arm it is; the last one by default."""
    model: Literal["final", "best"] = "final"
    """final: the weights of the last step; best: those of the lowest evaluation loss."""


class StudyBudget(Section):
    """One hard limit over all stages."""

    usd: Usd | None = Field(default=None, gt=0)


GENERIC = "generic"
"""The layout of a report to which no study-specific parts are added."""


def layouts() -> list[str]:
    """Layouts of a report: `generic`, and one per file of the package `podium.components.reporting.studies`.

    The files are listed, not imported: they draw figures, and loading a study must not wait for matplotlib.
    """
    package = find_spec("podium.components.reporting.studies")
    places = package.submodule_search_locations if package else None
    return [GENERIC, *sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(places or []))]


def _known_layout(name: str) -> str:
    known = layouts()
    if name not in known:
        quoted = [repr(each) for each in known]
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(quoted[:-1])} or {quoted[-1]}"})
    return name


class Study(Section):
    """One experiment, resolved: a profile is applied and nothing is left open."""

    name: str = Field(pattern=NAME, max_length=40)
    title: str = ""
    question: str
    layout: Annotated[str, AfterValidator(_known_layout)] = Field(
        default=GENERIC, json_schema_extra=lambda schema: schema.update(enum=[*layouts()])
    )
    """Which study-specific tables and exports the report adds."""
    profile: str = "full"
    base_seed: int = Field(default=42, ge=0)
    data: StudyData
    config: dict[str, Any]
    """The base config: fields of the trainer's TrainConfig but budget, seed and stop, nested."""
    design: Literal["one_at_a_time", "grid", "list", "groups"] = "list"
    baseline: Baseline = Baseline()
    axes: dict[str, Axis] = {}
    variants: dict[str, VariantSpec] = {}
    stages: dict[str, Stage] = Field(min_length=1)
    shakedown: Shakedown = Shakedown()
    evaluation: StudyEvaluation = StudyEvaluation()
    budget: StudyBudget = StudyBudget()
    champion: Champion = Champion()
    production: Production | None = None
    """With it the report has a config file for that training."""
    confounds: list[str] = []
    """Sentences that the report shows beside the result (share is confounded with depth)."""

    def stage_after(self, stage: str) -> str | None:
        """The name of the next stage; None after the last one."""
        stages = list(self.stages)
        return next(iter(stages[stages.index(stage) + 1 :]), None)
