"""Secrets that a run was given are in nothing that it leaves."""

from __future__ import annotations

import secrets

import pytest
import yaml

pytestmark = [pytest.mark.cluster, pytest.mark.core, pytest.mark.timeout(900)]


def test_planted_credentials_are_found_in_nothing_that_a_run_leaves(scene, cluster, make_namespace, tmp_path):
    planted = {name: f"planted{secrets.token_hex(12)}" for name in ("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD")}
    keys = {"AWS_ACCESS_KEY_ID": cluster.access_key, "AWS_SECRET_ACCESS_KEY": cluster.secret_key}
    scene.namespace = make_namespace(secret={**keys, **planted})
    scene.jobs = {"secret": "podium-credentials"}
    scene.env = dict(planted)
    scene.study = scene.study.replace("budget: {steps: 240}", "budget: {steps: 40}")
    conductor = scene.conduct()
    assert conductor.ends() == 0, conductor.said()
    said = [scene.podium("report", scene.run, "--store", scene.store)]
    said.append(scene.podium("status", scene.run, "--store", scene.store))
    said.append(scene.podium("logs", scene.run, "baseline/seed-42", "--store", scene.store))
    compiled = tmp_path / "pipeline.yaml"
    said.append(scene.podium("compile", str(tmp_path / "study.yaml"), "-o", str(compiled), "--store", scene.store))

    places = {f"store: {key}": scene.read(key) for key in scene.objects()}
    places |= {f"local: {path.name}": path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    places |= {f"command {number}": text.encode() for number, text in enumerate(said)}
    for kind in ("jobs", "pods", "events"):
        places[kind] = cluster.kubectl("-n", scene.namespace, "get", kind, "-o", "yaml").encode()
    for pod in scene.listed("pods"):
        name = pod["metadata"]["name"]
        places[f"log of {name}"] = cluster.kubectl("-n", scene.namespace, "logs", name).encode()

    hidden = {**keys, **planted}
    found = [
        f"{name} in {place}"
        for name, value in hidden.items()
        for place, data in places.items()
        if value.encode() in data
    ]
    assert not found
    # The search finds what is there: the Secret itself holds them all.
    held = yaml.safe_load(cluster.kubectl("-n", scene.namespace, "get", "secret", "podium-credentials", "-o", "yaml"))
    assert held["data"].keys() == hidden.keys()
    for part in ("mlflow.db", "pipeline.yaml", "conductor-0.log", "result.json", "report/index.html", "pods"):
        assert any(part in place for place in places), f"{part} was not searched: {sorted(places)}"
    print(f"{len(hidden)} secrets, {len(places)} places, {sum(map(len, places.values())) / 1e6:.1f} MB: none found")
