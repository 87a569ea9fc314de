"""What a server tells those who run it: its numbers as Prometheus reads them, its version, and where else to ask."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve_models import Script, asking, ready, stories
from starlette.testclient import TestClient

import headway as hw
from headway.generate.scheduler import SchedulerState
from headway.serve import metrics


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[TestClient]:
    with asking(ready(stories(data_dir), "stories", Script())) as client:
        yield client


def test_prometheus_reads_counters_as_counters(server: TestClient) -> None:
    server.post("/v1/completions", json={"prompt": "Once"})
    answer = server.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    for name, family in families.items():
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        assert re.fullmatch("(headway|process)_[a-z_]+", name)
        names = {sample.name for sample in family.samples}
        if family.type == "counter":
            assert names == {f"{name}_total"}
        elif family.type == "gauge":
            assert not name.endswith(("_total", "_count", "_sum", "_bucket"))
    assert families["headway_requests"].type == "counter"
    assert families["headway_scheduler_running"].type == "gauge"
    if sys.platform == "linux":
        wanted = {"cpu_seconds": "counter", "resident_memory_bytes": "gauge", "open_fds": "gauge"}
        assert {name: families[f"process_{name}"].type for name in wanted} == wanted
        assert families["process_start_time_seconds"].samples[0].value > 1e9


def test_numbers_of_a_scheduler_are_counters_but_for_those_of_now() -> None:
    state = SchedulerState(1, 2, 3, None, 5, 6, 7, 8, 9, 10)
    page = metrics.render(lambda: {"a": state._asdict(), "b": {"running": 0, "waiting": 4}}).decode()
    kinds = dict(re.findall(r"# TYPE headway_scheduler_(\w+) (\w+)", page))
    assert {name for name, kind in kinds.items() if kind == "gauge"} == {"waiting", "running", "blocks"}
    assert {name for name, kind in kinds.items() if kind == "counter"} == {
        f"{name}_total"
        for name in ("prefix_tokens", "prompt_tokens", "written_tokens", "preemptions", "guessed", "accepted")
    }
    assert 'headway_scheduler_preemptions_total{model="a"} 8.0' in page
    assert 'headway_scheduler_waiting{model="b"} 4.0' in page


def test_a_path_is_suggested_where_it_is_near_alone(server: TestClient) -> None:
    def told(path: str) -> str:
        return server.get(path).json()["error"]["message"]

    assert told("/v1/model") == "there is no GET /v1/model; did you mean '/v1/models'?"
    assert told("/models") == "there is no GET /models; did you mean '/v1/models'?"
    assert told("/completions").endswith("did you mean '/v1/completions'?")
    for path in ("/favicon.ico", "/v1/moderations", "/v1/files", "/wp-login.php"):
        assert told(path) == f"there is no GET {path}; /docs lists the paths"
    assert server.get("/version").json() == {"version": hw.__version__}
