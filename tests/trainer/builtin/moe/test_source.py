"""Pretrained weights from a folder, from S3 and from the hub, and what is said where they can't be had."""

from __future__ import annotations

import os
import uuid

import pytest
import torch

from podium.trainer.builtin import pretrained
from podium.trainer.builtin.models.build import build_model, start_weights
from podium.trainer.builtin.models.gpt2 import quiet_transformers
from podium.trainer.builtin.pretrained import source_folder
from podium.trainer.builtin.run import train
from podium.trainer.trial.errors import ConfigError
from podium.trainer.trial.storage import open_storage


@pytest.fixture
def saved(make_model, tmp_path):
    """A GPT-2 as transformers writes it, with weights that no seed gives."""
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    folder = tmp_path / "gpt2"
    with quiet_transformers():
        model.lm.save_pretrained(folder)
    return folder, model


@pytest.fixture
def s3_folder(saved, monkeypatch, tmp_path):
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-access-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-access-key")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("PODIUM_CACHE", str(tmp_path / "cache"))
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket=bucket)
    storage = open_storage(f"s3://{bucket}/models/gpt2")
    for name in ("config.json", "model.safetensors"):
        storage.upload(saved[0] / name, name)
    yield f"s3://{bucket}/models/gpt2"
    server.stop()


def same(model, source):
    theirs = dict(source.lm.named_parameters())
    return all(torch.equal(value, theirs[name]) for name, value in model.lm.named_parameters())


def config_with(moe_config, source, moe=None):
    return moe_config(
        model={**moe_config().model.model_dump(), "source": source, "moe": moe}, router={} if moe else None
    ).model


def test_a_folder(saved, moe_config):
    folder, source = saved
    config = config_with(moe_config, str(folder))
    model = build_model(config)
    assert not same(model, source)
    start_weights(model, config)
    assert same(model, source)


def test_s3(s3_folder, saved, moe_config):
    config = config_with(moe_config, s3_folder)
    model = build_model(config)
    start_weights(model, config)
    assert same(model, saved[1])
    assert source_folder(s3_folder) == source_folder(s3_folder), "fetched once"


def test_the_hub_by_its_pinned_commit(saved, moe_config, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repository, name, *, revision):
        asked.append((repository, name, revision))
        return os.fspath(saved[0] / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    config = config_with(moe_config, "gpt2")
    model = build_model(config)
    start_weights(model, config)
    assert same(model, saved[1])
    assert {each[::2] for each in asked} == {pretrained.HUB["gpt2"]}


def test_a_hub_that_is_away_is_said_with_what_else_serves(monkeypatch):
    import huggingface_hub

    def away(*arguments, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", away)
    with pytest.raises(ConfigError, match=r"model.source: 'gpt2' can't be fetched from the hub \(no route\); give a"):
        source_folder("gpt2")


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no config.json, model.safetensors there"):
        source_folder(str(tmp_path))


def test_a_run_starts_from_them_and_a_resume_does_not_ask_for_them(saved, tmp_path, moe_spec, capsys):
    folder, _ = saved
    model = {**moe_spec().config.model.model_dump(), "source": str(folder)}
    steps = {"evaluation": {"every_steps": 2}, "checkpoint": {"every_steps": 2}}
    train(moe_spec(model=model, max_steps=2, **steps), open_storage(str(tmp_path / "run")))
    for path in folder.iterdir():
        path.unlink()
    result = train(moe_spec(model=model, max_steps=4, **steps), open_storage(str(tmp_path / "run")))
    assert result.steps == 4
