"""A prepared dataset with a tokenizer, an untrained model in a run's folder, and SmallBench's files in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from podium.trainer.builtin.checkpoint import header
from podium.trainer.builtin.config import RunSpec, load_config
from podium.trainer.builtin.data.corpus import parse_corpus
from podium.trainer.builtin.data.prepare import PrepareConfig, dataset_key, prepare
from podium.trainer.builtin.models.build import build_model
from podium.trainer.trial.storage import open_storage

VOCABULARY = (
    "the a film movie is was good bad long short true false yes no question answer sentence positive negative "
    "company said its shares rose fell on monday after it reported earnings in new york and london"
)
WORDS = VOCABULARY.split()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 30 kB of sentences, prepared with a vocabulary of 320."""
    base = tmp_path_factory.mktemp("evaluation-data")
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(WORDS, size=40)) + "." for _ in range(150)]
    (base / "text.txt").write_text("\n\n".join(documents))
    config = PrepareConfig(corpus=parse_corpus(str(base / "text.txt")), vocab_size=320, workers=1)
    manifest = prepare(config, open_storage(str(base / "store")))
    return base / "store" / dataset_key(manifest.fingerprint)


@pytest.fixture(scope="session")
def run_folder(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's trial: config.json, and two untrained models in checkpoints/."""
    folder = tmp_path_factory.mktemp("runs") / "seed-42"
    config = load_config(
        {
            "model": {"vocab_size": 320, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 40},
            "data": {"sequence_length": 32},
            "optimizer": {"learning_rate": 1e-3},
            "batch": {"sequences": 4},
            "max_steps": 10,
            "evaluation": {"every_steps": 5, "sequences": 4},
        }
    )
    spec = RunSpec(config=config, dataset=f"file://{dataset}")
    open_storage(str(folder)).write_json("config.json", spec.model_dump(mode="json"))
    (folder / "checkpoints").mkdir()
    for seed, name in enumerate(("final-model", "best-model")):
        torch.manual_seed(seed)
        path = folder / "checkpoints" / f"{name}.safetensors"
        save_file(build_model(config.model).state_dict(), path)
        about = {**header(config, 10 - seed), "metrics_summary": {"tokens": 1280, "val_loss": None}}
        path.with_suffix(".json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="session")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few validation examples of each task, each in another of the formats in which they are handed out."""
    folder = tmp_path_factory.mktemp("smallbench")
    (folder / "SST-2").mkdir()
    sentences = [f'{"a good" if i % 3 else "a bad"} film , " long " but {WORDS[i]}' for i in range(6)]
    (folder / "SST-2" / "dev.tsv").write_text(
        "sentence\tlabel\n" + "".join(f"{text}\t{int(i % 3 > 0)}\n" for i, text in enumerate(sentences))
    )
    (folder / "SST-2" / "train.tsv").write_text("sentence\tlabel\nmust not be read\t7\n")
    (folder / "rte").mkdir()
    (folder / "rte" / "validation.jsonl").write_text(
        "".join(
            json.dumps({"sentence1": f"the movie was {word}", "sentence2": f"it was {word}", "label": i % 2, "idx": i})
            + "\n"
            for i, word in enumerate(WORDS[:4])
        )
    )
    (folder / "mrpc.csv").write_text(
        "#1 ID,#2 ID,#1 String,#2 String,Quality\n"
        '1,2,"shares rose, said a company",a company said shares rose,1\n'
        "3,4,shares fell on monday,it reported earnings,0\n"
        "5,6,new york and london,london and new york,1\n"
    )
    (folder / "BoolQ").mkdir()
    passages = ["shares rose", *["the company said its shares rose on monday after it reported earnings . " * 3] * 2]
    questions = [
        {"question": "did shares rise", "title": "t", "answer": i != 1, "passage": passage}
        for i, passage in enumerate(passages)
    ]
    (folder / "BoolQ" / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return folder
