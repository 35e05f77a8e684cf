"""A policy is one class in one file: one that only this module knows is validated, planned and decided by."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field

from podium.components.policies.decide import decide
from podium.components.study.fingerprint import study_hash
from podium.components.study.load import dump_study, load_study, validate
from podium.components.study.plan import plan
from podium.components.study.policy import ArmCount, Policy, policy_of
from podium.components.study.schema import Promotion, Stage, Study, policies
from podium.components.study.verdict import Arm, StageResults, Verdict
from podium.components.verdicts.arms import ranked, summaries
from podium.trainer.trial.errors import ConfigError, Problem

ROOT = Path(__file__).parents[3]


class BestHalf(Policy):
    """The better half is promoted, and the baseline is not asked for."""

    policy: Literal["best_half"] = "best_half"
    share: float = Field(default=0.5, gt=0, le=1)

    needs_baseline: ClassVar[bool] = False

    def problems(self, study: Study, stage: str) -> Iterator[Problem]:
        """A last stage has nobody to promote half of its arms to."""
        yield from super().problems(study, stage)
        if study.stage_after(stage) is None:
            yield Problem(f"stages.{stage}.promotion.policy", "best_half needs a next stage, and this is the last")

    def next_arms(
        self, study: Study, stage: str, here: ArmCount, *, axes: int | None = None, spent: float | None = None
    ) -> ArmCount:
        return ArmCount(1, math.ceil(here.most * self.share), False)

    def decide(self, study: Study, results: StageResults, arms: list[Arm]) -> Verdict:
        order = ranked(arms)
        chosen = order[: math.ceil(len(order) * self.share)]
        names = {arm.name for arm in chosen}
        return Verdict(
            stage=results.stage,
            policy=self.policy,
            parameters={},
            decision="promote",
            reason=f"promote the best {len(chosen)} of {len(order)}",
            promoted=[arm.variant for arm in chosen],
            winner=chosen[0].name,
            metric=self.metric,
            ranking=summaries(arms, order),
            not_chosen={arm.name: arm.why_not or "in the worse half" for arm in arms if arm.name not in names},
        )


TEXT = """
name: toy
question: which
data: {corpus: {source: builtin}, vocab_size: 2048}
config:
  model: {family: transformer, d_model: 8, n_layers: 1, n_heads: 2, d_ff: 16}
  data: {sequence_length: 32}
  optimizer: {learning_rate: 1e-3}
  batch: {sequences: 4}
  evaluation: {every_steps: 10, sequences: 8}
  checkpoint: {every_steps: 20}
  runtime: {threads: 1, device: cpu}
design: one_at_a_time
axes:
  rate: {field: optimizer.learning_rate, values: [1e-4, 1e-3, 2e-3, 3e-3], names: [r1, r10, r20, r30]}
stages:
  screen:
    budget: {steps: 40}
    price: {usd_per_run: 1}
    promotion: {policy: best_half, share: 0.5}
  finals:
    budget: {steps: 60}
    seeds: 3
    price: {usd_per_run: 10}
    promotion: {policy: best_mean}
"""


@pytest.fixture(scope="module")
def toy() -> Study:
    return load_study(TEXT)


def test_a_study_may_name_a_policy_that_no_list_has(toy: Study) -> None:
    assert toy.stages["screen"].promotion == BestHalf(share=0.5)
    assert load_study(dump_study(toy)) == toy
    assert study_hash(load_study(TEXT.replace("0.5", "0.25"))) != study_hash(toy)


def test_its_own_checks_and_fields_are_reported_with_their_places() -> None:
    with pytest.raises(ConfigError) as error:
        load_study(TEXT.replace("policy: best_mean", "policy: best_half"))
    assert str(error.value) == (
        "study: stages.finals.promotion.policy: best_half needs a next stage, and this is the last"
    )
    with pytest.raises(ConfigError) as error:
        load_study(TEXT.replace("share: 0.5", "share: 2"))
    assert str(error.value) == ("study: stages.screen.promotion.share: must be less than or equal to 1, got 2")
    with pytest.raises(ConfigError, match=r"stages.screen.promotion.sahre: unknown field; did you mean 'share'\?"):
        load_study(TEXT.replace("share: 0.5", "sahre: 0.5"))


def test_a_plan_counts_whom_it_promotes(toy: Study) -> None:
    found = plan(toy)
    assert [stage.trials for stage in found.stages] == [4, 2 * 3]
    assert found.usd == 4 * 1 + 2 * 3 * 10
    assert found.ranks


def test_it_decides(toy: Study, stage_of: Callable[..., StageResults]) -> None:
    results = stage_of(toy, "screen", {"baseline": [3.0], "r1": [2.9], "r20": [3.2], "r30": [2.8]})
    verdict = decide(toy, results)
    assert isinstance(verdict, Verdict)
    assert (verdict.decision, verdict.winner) == ("promote", "r30")
    assert [ref.name for ref in verdict.promoted] == ["r30", "r1"]
    assert verdict.not_chosen == {"baseline": "in the worse half", "r20": "in the worse half"}
    assert verdict.parameters["share"] == 0.5
    assert verdict.counts == {"completed": 4}


def test_an_unknown_policy_is_told_all_that_there_are() -> None:
    shipped = (
        "always, top_per_axis, best_mean, if_affordable, within_margin, beats_baseline, reaches_target, "
        "fastest_to_target, refine_region"
    )
    with pytest.raises(ConfigError) as error:
        load_study(TEXT.replace("best_half", "best_third"))
    assert str(error.value) == (
        f"study: stages.screen.promotion.policy: must be one of {shipped}, best_half, got 'best_third'"
    )


@pytest.mark.parametrize("wrong", ["best_mean", 3, None, [], {}])
def test_what_is_no_policy_is_refused_in_its_place(toy: Study, wrong: object) -> None:
    data = toy.model_dump(mode="json")
    data["stages"]["screen"]["promotion"] = wrong
    with pytest.raises(ConfigError, match=r"^study: stages\.screen\.promotion"):
        validate(data, source="study")


def test_the_json_schema_has_the_fields_of_every_policy() -> None:
    for mode in ("validation", "serialization"):
        schema = Stage.model_json_schema(mode=mode)
        assert {"BestHalf", "BestMean", "Pivot", "Fallbacks"} <= set(schema["$defs"]), mode


def test_two_policies_of_one_name_are_refused() -> None:
    with pytest.raises(TypeError, match="two policies are named 'best_half'"):

        class Other(Policy):
            policy: Literal["best_half"] = "best_half"

    assert policies()["best_half"] is BestHalf


def test_a_study_that_was_read_finds_its_policies_in_any_process() -> None:
    code = (
        "import sys; from podium.components.study.load import load_study; "
        "assert not any(name.startswith('podium.components.policies') for name in sys.modules); "
        "load_study('param-allocation', profile='smoke'); "
        "assert 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- nobody else asks which policy it is ----

FILES = {name: Path(sys.modules[policy.__module__].__file__ or "") for name, policy in policies().items()}
CLASSES = {policy.__name__: FILES[name] for name, policy in policies().items()}


def _asks(path: Path) -> Iterator[str]:
    """Where a module outside of a policy's own names its class, or compares with its name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        named = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if isinstance(node, ast.alias):
            named = node.name
        if named in CLASSES and path.resolve() != CLASSES[named].resolve():
            yield f"{path.relative_to(ROOT)}: {named}"
        if isinstance(node, (ast.Compare, ast.match_case)):
            text = ast.unparse(node)
            constants = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
            for name in constants & FILES.keys():
                is_of_policies = name != "always" or "policy" in text or "promotion" in text
                if is_of_policies and path.resolve() != FILES[name].resolve():
                    yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '')}: {text}"


@pytest.mark.parametrize("package", ["trainer", "components", "pipelines"])
def test_no_other_module_tests_for_a_policys_class_or_name(package: str) -> None:
    assert [ask for path in sorted((ROOT / package).rglob("*.py")) for ask in _asks(path)] == []


def test_every_policy_is_a_policy(toy: Study) -> None:
    assert all(issubclass(policy, Policy) for policy in policies().values())
    assert isinstance(policy_of(toy, "finals"), Promotion)
