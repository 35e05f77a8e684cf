"""The link of a run, for each way in which Kubeflow is installed."""

import pytest

from podium.pipelines.kubeflow.address import IN_CLUSTER, Address
from podium.pipelines.kubeflow.api import pipeline_link, run_link

DASHBOARD = "https://kubeflow.example/_/pipeline/?ns=me#/runs/details/r-1"


@pytest.mark.parametrize(
    ("address", "link"),
    [
        (Address(host="https://kfp.example"), "https://kfp.example/#/runs/details/r-1"),
        (Address(host="https://kubeflow.example/pipeline", namespace="me"), DASHBOARD),
        (Address(host="https://kubeflow.example/pipeline"), "https://kubeflow.example/pipeline/#/runs/details/r-1"),
        (Address(host="http://10.0.0.1:8888", ui="https://kubeflow.example/_/pipeline", namespace="me"), DASHBOARD),
        (Address(host="http://10.0.0.1:8888", ui="https://pages.example"), "https://pages.example/#/runs/details/r-1"),
        (Address(host=IN_CLUSTER.format(namespace="kubeflow")), None),
        (Address(host="http://127.0.0.1:31234", port_forward=True), None),
        (Address(host="http://127.0.0.1:31234", port_forward=True, ui="https://u"), "https://u/#/runs/details/r-1"),
    ],
)
def test_a_runs_link_is_one_that_a_browser_can_open_or_none(address, link):
    assert run_link(address, "r-1") == link


def test_a_versions_link_names_its_pipeline():
    link = pipeline_link(Address(host="https://kfp.example"), "p-1", "v-1")
    assert link == "https://kfp.example/#/pipelines/details/p-1/version/v-1"
