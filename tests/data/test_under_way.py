"""Tasks of a cluster: what is waited for."""

from __future__ import annotations

import threading

import pytest

from scvi_lfm.data.under_way import Run, in_turn

distributed = pytest.importorskip("distributed")


def ten():
    return 10


@pytest.mark.filterwarnings("ignore:Sending large graph")
def test_a_cluster_without_workers_is_told_of_and_waited_for(monkeypatch):
    monkeypatch.setattr("scvi_lfm.data.under_way.SECONDS_UNTIL_TOLD", 0.2)
    delayed = pytest.importorskip("dask").delayed
    options = {"n_workers": 0, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        later = threading.Timer(1, cluster.scale, [1])
        later.start()
        with pytest.warns(
            UserWarning, match=r"The cluster at .+ has no worker: the call waits until one comes\. Start some"
        ):
            assert list(in_turn(client, "X", [Run([], [delayed(ten)()], 0)])) == [10]
        later.join()
