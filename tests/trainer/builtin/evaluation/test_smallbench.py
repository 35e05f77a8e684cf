from __future__ import annotations

import contextlib
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from torch import nn

from podium.trainer.builtin.data.tokenizer import end_of_text, load_tokenizer
from podium.trainer.builtin.evaluation.smallbench import TASKS, TaskResult, mean_accuracy, read_task, run_smallbench

if TYPE_CHECKING:
    from podium.trainer.builtin.evaluation.subject import PodiumLM

lm_eval = pytest.importorskip("lm_eval", reason="the extra smallbench is not installed")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def tokenizer(dataset: Path) -> Tokenizer:
    return load_tokenizer(dataset)


class Bigram(nn.Module):
    """Log-probabilities of the next token from the last one alone, counting passes and their widths."""

    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(size, size)
        self.passes: list[tuple[int, ...]] = []

    def forward(self, idx_BT: torch.Tensor) -> tuple[torch.Tensor, None]:
        self.passes.append(tuple(idx_BT.shape))
        return self.table(idx_BT), None


class Oracle(Bigram):
    """Gives the next token of the text it was shown, so that it always prefers that text."""

    def __init__(self, size: int, texts: list[list[int]]) -> None:
        super().__init__(size)
        self.next = {tuple(ids[:n]): ids[n] for ids in texts for n in range(1, len(ids))}

    def forward(self, idx_BT: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits_BTV = torch.zeros(*idx_BT.shape, self.table.num_embeddings)
        for b, row in enumerate(idx_BT.tolist()):
            for t in range(len(row)):
                if tuple(row[: t + 1]) in self.next:
                    logits_BTV[b, t, self.next[tuple(row[: t + 1])]] = 20.0
        return logits_BTV, None


def language_model(model: nn.Module, tokenizer: Tokenizer, max_length: int = 64) -> PodiumLM:
    from podium.trainer.builtin.evaluation.subject import PodiumLM

    return PodiumLM(
        model,
        tokenizer,
        end_of_text=end_of_text(tokenizer),
        max_length=max_length,
        device=torch.device("cpu"),
        autocast=contextlib.nullcontext(),
    )


def asked(*pairs: tuple[str, str]) -> list[Any]:
    return [SimpleNamespace(args=pair, doc_id=number) for number, pair in enumerate(pairs)]


def by_hand(model: Bigram, tokenizer: Tokenizer, context: str, continuation: str) -> float:
    prompt = tokenizer.encode(context).ids or [end_of_text(tokenizer)]
    answer = tokenizer.encode(context + continuation).ids[len(tokenizer.encode(context).ids) :]
    ids = prompt + answer
    table = model.table.weight.detach().double().log_softmax(-1)
    return sum(float(table[a, b]) for a, b in itertools.pairwise(ids)) - sum(
        float(table[a, b]) for a, b in itertools.pairwise(prompt)
    )


def test_a_continuations_log_likelihood_is_the_sum_over_its_tokens(tokenizer: Tokenizer) -> None:
    model = Bigram(320)
    pairs = [
        ("the film is", " good"),
        ("the film is", " bad and long"),
        ("", "the film"),
        ("a much longer context", " no"),
    ]
    found = language_model(model, tokenizer).loglikelihood(asked(*pairs))
    for (context, continuation), (value, _) in zip(pairs, found, strict=True):
        assert value == pytest.approx(by_hand(model, tokenizer, context, continuation), abs=1e-4)
    assert all(width <= 64 for _, width in model.passes)


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(tokenizer: Tokenizer) -> None:
    model = language_model(Bigram(320), tokenizer)
    assert model.loglikelihood(asked(("the film is ", "good"))) == model.loglikelihood(asked(("the film is", " good")))


def test_answers_of_one_token_to_one_question_cost_one_row(tokenizer: Tokenizer) -> None:
    model = Bigram(320)
    yes, no = [word for word in (" yes", " the", " was", " good") if len(tokenizer.encode(word).ids) == 1][:2]
    language_model(model, tokenizer).loglikelihood(asked(("is it true", yes), ("is it true", no)))
    assert [rows for rows, _ in model.passes] == [1]


def test_greedy_is_said_only_of_what_greedy_decoding_gives(tokenizer: Tokenizer) -> None:
    model = Oracle(320, [tokenizer.encode("the film is good and long").ids])
    found = language_model(model, tokenizer).loglikelihood(asked(("the film is", " good and"), ("the film is", " bad")))
    assert [greedy for _, greedy in found] == [True, False]
    assert found[0][0] > found[1][0]


def test_a_long_prompt_loses_its_beginning_and_is_counted(tokenizer: Tokenizer) -> None:
    model = Bigram(320)
    long = "the film is good and the company said its shares rose on monday"
    wrapped = language_model(model, tokenizer, max_length=8)
    short, cut = wrapped.loglikelihood(asked(("is", " good"), (long, " after")))
    assert wrapped.truncated == 1
    assert all(width <= 8 for _, width in model.passes)
    # a bigram sees the last token alone, so that nothing changes for it
    assert cut[0] == pytest.approx(by_hand(model, tokenizer, long, " after"), abs=1e-4)
    assert short[0] < 0


def test_the_tasks_are_those_of_the_harness() -> None:
    base = Path(lm_eval.__file__).parent / "tasks"
    places = {"sst2": "glue/sst2", "rte": "glue/rte", "mrpc": "glue/mrpc", "boolq": "super_glue/boolq"}
    for task, place in places.items():
        theirs = yaml.safe_load((base / place / "default.yaml").read_text())
        assert {name: theirs[name] for name in TASKS[task]} == TASKS[task]
        assert theirs["output_type"] == "multiple_choice"
        assert theirs["validation_split"] == "validation"
        assert theirs["doc_to_target"] == "label"
        assert theirs["metric_list"][0] == {"metric": "acc"}


def examples(folder: Path) -> dict[str, Any]:
    return {task: read_task(folder, task) for task in TASKS}


def test_a_model_that_knows_the_answers_gets_them_all_right(task_files: Path, tokenizer: Tokenizer) -> None:
    local = examples(task_files)
    texts = []
    for row in local["sst2"]:
        prompt = f"{row['sentence']}\nQuestion: Is this sentence positive or negative?\nAnswer:"
        texts.append(tokenizer.encode(prompt + (" positive" if row["label"] else " negative")).ids)
    # it knows every answer of SST-2 and nothing else
    results = run_smallbench(lambda: language_model(Oracle(320, texts), tokenizer, max_length=2000), examples=local)
    assert results["sst2"].accuracy == 1.0
    assert results["sst2"].correct == (1,) * 6
    assert results["sst2"].standard_error == 0.0
    assert results["sst2"].majority == pytest.approx(4 / 6)
    assert {task: result.n for task, result in results.items()} == {"sst2": 6, "rte": 4, "mrpc": 3, "boolq": 3}
    # elsewhere all tokens are alike to it, so that the answer with fewer tokens wins
    assert len(tokenizer.encode(" yes").ids) < len(tokenizer.encode(" no").ids)
    assert results["boolq"].correct == (1, 0, 1)


def test_accuracy_and_its_error_follow_from_the_examples(task_files: Path, tokenizer: Tokenizer) -> None:
    model = Bigram(320)
    results = run_smallbench(lambda: language_model(model, tokenizer), examples=examples(task_files))
    for result in results.values():
        assert result.n is not None
        share = sum(result.correct) / result.n
        assert result.accuracy == pytest.approx(share)
        assert result.standard_error == pytest.approx(math.sqrt(share * (1 - share) / (result.n - 1)))
        assert result.reason is None
    assert results["boolq"].truncated == 2
    again = run_smallbench(lambda: language_model(model, tokenizer), examples=examples(task_files))
    assert again == results


def test_a_limit_reads_the_first_examples_alone(task_files: Path, tokenizer: Tokenizer) -> None:
    local = examples(task_files)
    few = run_smallbench(lambda: language_model(Bigram(320), tokenizer), examples=local, limit=2)
    assert {result.n for result in few.values()} == {2}
    assert (
        few["sst2"].examples_sha256
        != run_smallbench(lambda: language_model(Bigram(320), tokenizer), examples=local)["sst2"].examples_sha256
    )


def test_a_task_without_examples_is_null_with_a_reason_and_the_others_are_measured(
    task_files: Path, tokenizer: Tokenizer
) -> None:
    local = {**examples(task_files), "rte": None}
    results = run_smallbench(lambda: language_model(Bigram(320), tokenizer), examples=local)
    assert results["rte"] == TaskResult(reason="no file of its validation examples was given")
    assert results["sst2"].accuracy is not None
    assert mean_accuracy(results) is None


def test_a_hub_that_can_not_be_reached_is_a_reason_and_no_number(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    results = run_smallbench(lambda: language_model(Bigram(320), tokenizer), examples=None)
    assert all(result.accuracy is None and result.reason for result in results.values())


def test_the_mean_is_over_all_tasks() -> None:
    results = {"a": TaskResult(accuracy=0.5), "b": TaskResult(accuracy=0.7)}
    assert mean_accuracy(results) == pytest.approx(0.6)
    assert mean_accuracy({}) is None
