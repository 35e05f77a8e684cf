from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

from podium.trainer.builtin.evaluation.smallbench import read_task
from podium.trainer.trial.errors import DataError


def test_every_task_is_read_into_the_columns_of_the_hub(task_files: Path) -> None:
    found = {task: read_task(task_files, task) or [] for task in ("sst2", "rte", "mrpc", "boolq")}
    assert {task: len(rows) for task, rows in found.items()} == {"sst2": 6, "rte": 4, "mrpc": 3, "boolq": 3}
    assert found["sst2"][1] == {"sentence": 'a good film , " long " but a', "label": 1, "idx": 1}
    assert found["rte"][1] == {"sentence1": "the movie was a", "sentence2": "it was a", "label": 1, "idx": 1}
    assert found["mrpc"][0]["sentence1"] == "shares rose, said a company"
    assert [row["label"] for row in found["mrpc"]] == [1, 0, 1]
    assert set(found["boolq"][0]) == {"question", "passage", "label", "idx"}
    assert [row["label"] for row in found["boolq"]] == [1, 0, 1]


def test_labels_in_words_mean_what_they_mean_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "dev.tsv").write_text(
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n"
    )
    assert [row["label"] for row in read_task(tmp_path, "rte") or []] == [0, 1]


def test_the_hubs_own_parquet_files_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "glue" / "sst2"
    folder.mkdir(parents=True)
    rows = {"sentence": ["good", "bad"], "label": [1, 0], "idx": [0, 1]}
    pandas.DataFrame(rows).to_parquet(folder / "validation-00000-of-00001.parquet")
    pandas.DataFrame(rows).to_parquet(folder / "test-00000-of-00001.parquet")
    assert read_task(tmp_path, "sst2") == [
        {"sentence": "good", "label": 1, "idx": 0},
        {"sentence": "bad", "label": 0, "idx": 1},
    ]


def test_a_task_without_files_is_none_and_train_or_test_files_are_left_alone(tmp_path: Path) -> None:
    assert read_task(tmp_path, "sst2") is None
    (tmp_path / "sst2-train.tsv").write_text("sentence\tlabel\nx\t1\n")
    (tmp_path / "sst2_test.tsv").write_text("sentence\tlabel\nx\t1\n")
    assert read_task(tmp_path, "sst2") is None


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("sst2.tsv", "sentence\tlabel\nfine\t2\n", r"sst2\.tsv:1: label must be one of 0, 1, negative, positive, got"),
        ("sst2.tsv", "text\tlabel\nfine\t1\n", r"must have label, sentence, got text, label"),
        ("sst2.tsv", "sentence\tlabel\nno label\n", r"must have label, sentence"),
        ("sst2.tsv", "sentence\tlabel\n", r"has no examples"),
        ("sst2.jsonl", "{not json}\n", r"can't be read"),
        ("sst2.jsonl", "[1]\n", r"must be an object, got \[1\]"),
        ("sst2.json", json.dumps({"sentence": "x"}), r"must be a list of objects"),
        ("sst2.parquet", "no parquet", r"can't be read"),
    ],
)
def test_a_file_that_is_not_in_its_format_is_refused_by_name(tmp_path: Path, name: str, text: str, what: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=what):
        read_task(tmp_path, "sst2")
