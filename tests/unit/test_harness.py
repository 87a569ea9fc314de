"""lm-eval over a model of ours, on a local task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import headway as hw

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `harness`)")

from headway.app.harness import HarnessModel

STORIES = "weights/stories260K.bin"
TASK = """
task: local_endings
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: ["{{{{right}}}}", "{{{{wrong}}}}"]
doc_to_target: 0
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def model(data_dir: Path) -> HarnessModel:
    return HarnessModel(hw.load(data_dir / STORIES))


def asked(*arguments: object) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def test_likelihood_is_that_of_the_continuation(model: HarnessModel) -> None:
    start, end = "Once upon a time, there was a little", " girl named Lily."
    [(found, greedy)] = model.loglikelihood([asked(start, end)])
    whole = model.model.score([start + end])[0]
    count = len(model.model.prompt_ids(start + end)) - len(model.model.prompt_ids(start))
    assert found == pytest.approx(sum(whole[-count:]), abs=1e-3)
    assert greedy
    assert not model.loglikelihood([asked(start, " zebra")])[0][1]


def test_batches_do_not_change_it(model: HarnessModel) -> None:
    requests = [asked("Once upon", " a time"), asked("", "Lily"), asked("The big dog ", "ran to the park and played")]
    together = model.loglikelihood(requests)
    alone = [model.loglikelihood([request])[0] for request in requests]
    assert [score for score, _ in together] == pytest.approx([score for score, _ in alone], abs=1e-4)


def test_rolling_scores_every_token_once(model: HarnessModel) -> None:
    short = "Once upon a time, there was a little girl named Lily. She loved to play outside."
    [found] = model.loglikelihood_rolling([asked(short)])
    assert found == pytest.approx(sum(model.model.score([short])[0]), abs=1e-3)
    ids = model.model.codec.encode(short * 40)
    parts = model._rolling_windows(ids)
    assert [i for _, after in parts for i in after] == ids
    assert len(parts) > 1
    assert max(len(before) + len(after) - 1 for before, after in parts) <= (model.model.context or 0)


def test_generation_ends_at_the_stop_string(model: HarnessModel) -> None:
    [text] = model.generate_until([asked("Once upon a time", {"until": ["."], "max_gen_toks": 40})])
    assert text.strip(" ,").startswith("there was a little girl named Lily")
    assert "." not in text


def test_generation_ends_at_any_end_that_the_model_names(data_dir: Path) -> None:
    found = hw.load(data_dir / STORIES)
    stop = found.codec.encode("little")[-1]
    found.usage = replace(found.usage, ends=(*found.usage.ends, stop))
    [text] = HarnessModel(found).generate_until([asked("Once upon a time", {"max_gen_toks": 40})])
    assert text.strip(" ,") == found.generate("Once upon a time", 40, temperature=0).strip(" ,")
    assert len(text) < 40


@pytest.fixture
def endings(tmp_path: Path) -> Path:
    rows = [
        {"start": "Once upon a time, there was a little", "right": " girl named Lily.", "wrong": " the of and to."},
        {"start": "She loved to", "right": " play outside in the park.", "wrong": " zum zim zam zod zed."},
        {"start": "He was very", "right": " happy.", "wrong": " qxj."},
    ]
    path = tmp_path / "endings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_local_task(model: HarnessModel, endings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "local_endings.yaml").write_text(TASK.format(path=endings), encoding="utf-8")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(model, tasks=["local_endings"], task_manager=manager, bootstrap_iters=0)
    assert found is not None
    assert found["results"]["local_endings"]["acc,none"] == 1.0
    assert torch.is_grad_enabled()
