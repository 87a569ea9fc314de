"""A run's report: from its metrics to the sections of report.html."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headway.config import to_dict
from headway.learn import Run, measure_of, unit_of
from headway.learn.formatting import format_duration, format_epochs
from headway.learn.metric_names import RATE_METRICS, format_metric, is_rate, title
from headway.learn.plan.expected import format_score, kind_of
from headway.learn.report.charts import Points, compact_number, format_interval, line_chart
from headway.learn.report.rendering import Picture, Sections, explain_low_scores

# Fields in metrics.jsonl that are not metrics.
_NON_METRICS = (
    "step",
    "split",
    "weights",
    "seconds",
    "evaluation_seconds",
    "samples",
    "words",
    "positions",
    "target_return",
    "tokens",
    "beam",
    "boundaries",
    "environment_steps",
)


def run_sections(run: Run, pictures: Sequence[Picture] = ()) -> Sections:
    """A run's report. `run.summary` may contain the final "scores" and "samples"; see `with_results`."""
    recipe, summary = run.recipe, run.summary
    recipe_data, sentences = to_dict(recipe), notes(recipe.reasons, summary)
    forecast, best = summary.get("forecast"), summary.get("best") or {}
    if forecast and "loss" in best:  # the predicted and the actual final loss
        low, high = (compact_number(bound) for bound in forecast["loss_interval"])
        sentences.append(
            f"After {forecast['step']:,} steps the predicted final validation loss was "
            f"{compact_number(forecast['loss'])} "
            f"({low} to {high}); the best is {compact_number(best['loss'])}."
        )
    if sentence := expected_sentence(summary):
        sentences.append(sentence)
    if refitted := summary.get("refitted"):
        sentences.append(f"After training, the head was refitted to all {refitted:,} training and validation samples.")
    if extended := summary.get("extended"):
        sentences.append(f"Added after training: {extended}.")
    sentences += () if run.task is None else run.task.examples.remarks
    machine = {**summary.get("machine", {}), "device": summary.get("device"), "threads": summary.get("threads")}
    if summary.get("processes", 1) > 1:
        machine["processes"] = summary["processes"]
    return Sections(
        title=run_title(run.directory, recipe.name),
        subtitle=recipe.description,
        headline=_headline(run),
        curves=curves(run.metrics, measure_of(run.task)),
        scores=scores(summary.get("scores", {}), best, measure_of(run.task)),
        samples=summary.get("samples", ()),
        pictures=pictures,
        notes=sentences,
        configuration={name: recipe_data[name] for name in ("model", "task", "optim", "schedule", "train", "data")},
        facts={
            "Machine": machine,
            "Versions": {"python": summary.get("python"), **summary.get("packages", {})},
            "Training": {
                "steps": summary.get("step"),
                f"{unit_of(run.task)}s": summary.get("tokens"),
                **({} if summary.get("epochs") is None else {"epochs": summary["epochs"]}),
                "parameters": summary.get("parameters"),
                **({} if summary.get("trained") is None else {"trainable parameters": summary["trained"]}),
                "training": format_duration(summary.get("seconds") or 0.0),
                "including evaluations": format_duration(summary.get("elapsed") or 0.0),
                "precision": f"{summary.get('precision')} ({summary.get('precision_reason')})",
            },
        },
        command=repeat_command(run.directory, summary),
    )


def notes(reasons: Sequence[str], summary: Mapping[str, Any]) -> list[str]:
    """Sentences about the training, the `reasons` for the plan, the evaluated samples, and explanations of low
    scores.
    """
    scores = summary.get("scores") or {}
    sentences = []
    if summary.get("step"):  # the training and the saved model
        unit, epochs, best = summary.get("unit", "token"), summary.get("epochs"), summary.get("best") or {}
        amount = f"{summary['tokens']:,} {unit}s" + ("" if epochs is None else f", {format_epochs(epochs)}")
        is_early = summary["step"] < summary.get("steps", 0)
        ending = f" and stopped before step {summary['steps']:,}" if is_early else ""
        if "step" in best:
            origin = f"from step {best['step']:,}" if best["step"] else "the initial model"
            ending += f"; the best model is {origin}"
        duration = format_duration(summary.get("seconds") or 0.0)
        sentences.append(f"Trained for {summary['step']:,} steps ({amount}) in {duration}{ending}.")
    sentences += [f"Plan: {reason}." for reason in reasons]
    if scores.get("judged") is not None:
        evaluated, total = scores["judged"], scores["judged_of"]
        sentences.append(
            f"The {scores['split']} scores are from {evaluated:,} of {total:,} samples because time was limited; "
            "`headway evaluate` uses all of them."
        )
    if remark := scores.get("remark") or summary.get("remark"):
        sentences.append(remark)
    return [*sentences, *explain_low_scores(scores, summary.get("samples") or ())]


def expected_sentence(summary: Mapping[str, Any]) -> str:
    """What was expected before training, and what was reached; "" if either is unknown."""
    expected, scores = summary.get("expected"), summary.get("scores") or {}
    if not expected or scores.get(expected["metric"]) is None:
        return ""
    metric, reached = expected["metric"], scores[expected["metric"]]
    low, high = expected["interval"]
    score, low_text, high_text, reached_text = (
        format_score(metric, value) for value in (expected["score"], low, high, reached)
    )
    own = scores.get(f"{metric}_interval") or (reached, reached)
    if kind_of(metric) == "rate":  # as people see it: 100.0 % is inside an interval that ends at 100.0 %
        low, reached, high = (round(value, 3) for value in (low, reached, high))
    is_inside, overlaps = low <= reached <= high, own[0] <= high and low <= own[1]
    place = "inside this interval" if is_inside else "outside this interval"
    if overlaps and not is_inside:
        place += ", which its own 95 % interval overlaps"
    return (
        f"Before training, the expected {title(metric)} was {score} ({low_text} to {high_text}); the {scores['split']} "
        f"score, {reached_text}, is {place}."
    )


def run_title(directory: Path, name: str) -> str:
    """The title for a run or a comparison: the directory name, and `name`, the recipe or subject."""
    folder = directory.resolve().name
    return name if folder in ("", name) else f"{folder}: {name}"


def _headline(run: Run) -> dict[str, Any]:
    summary = run.summary
    scores = summary.get("scores") or summary.get("best") or {}
    split = scores.get("split", "validation")
    # The goal, and the metrics that are usually reported with it, before the loss.
    goal, rare = summary.get("goal", "loss"), ("rare_f1", "f1") if "rare_f1" in scores else ()
    order = [
        "success_rate",
        goal,
        *rare,
        "exact_match",
        "bleu",
        "chrf",
        "rougeL",
        "wer",
        "per",
        "r2",
        "mean_absolute_error",
        "accuracy",
        "loss",
        "bits_per_byte",
    ]
    available = [name for name in dict.fromkeys(order) if name in scores]
    names = [name for name in available if name != "score" or "success_rate" not in available][:2]
    figures = {f"{title(name)}, {split}": format_metric(name, scores[name]).replace(".0 %", " %") for name in names}
    seconds = summary.get("seconds") or 0.0
    return {
        **figures,
        "parameters": compact_number(float(summary["parameters"])),
        "training": format_duration(seconds),
        f"{unit_of(run.task)}s per second": f"{summary['tokens'] / seconds:,.0f}" if seconds else "",
    }


def curves(metrics: Iterable[Mapping[str, Any]], measure: str = "nats per token") -> list[Picture]:
    """Curves by step for the loss, the learning rate and every validation metric that is not always 0."""
    lines = list(metrics)
    training = [line for line in lines if "split" not in line]
    evaluations = [line for line in lines if "split" in line]
    loss = {"training": points(training, "loss"), "validation": points(evaluations, "loss")}
    pictures = [
        Picture("Loss", measure, line_chart(loss, "step", "loss", log=True)),
        Picture("Learning rate", "", line_chart({"lr": points(training, "lr")}, "step", "learning rate")),
    ]
    names = {name for line in evaluations for name, item in line.items() if isinstance(item, (int, float)) and item}
    for name, parts in metric_families(names - {*_NON_METRICS, "loss", "perplexity"}).items():
        series = {title(part): points(evaluations, part) for part in parts}
        if len(series[title(name)]) > 1:
            chart = line_chart(series, "step", title(name), dots=True, share=is_rate(name))
            pictures.append(Picture(chart_heading(name), "validation", chart))
    return [picture for picture in pictures if picture.figure]


def metric_families(names: Collection[str]) -> dict[str, list[str]]:
    """Metrics grouped by base metric, which comes first; for example, recall_at_1_de belongs to recall_at_1."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        base = next((group for group in groups if name.startswith(f"{group}_")), name)
        groups.setdefault(base, []).append(name)
    return groups


def points(lines: Iterable[Mapping[str, Any]], name: str, x: str = "step") -> Points:
    """The points (x, metric) from the lines that have both; rates in per cent."""
    return [
        (float(line[x]), chart_value(name, line[name]))
        for line in lines
        if line.get(name) is not None and line.get(x) is not None
    ]


def chart_value(name: str, value: float) -> float:
    """A metric's value for charts: rates in per cent."""
    return 100.0 * value if is_rate(name) else float(value)


def chart_heading(name: str) -> str:
    """The heading for a metric's chart, with its unit."""
    text = title(name)
    return text[:1].upper() + text[1:] + (" (%)" if is_rate(name) else "")


def scores(final: Mapping[str, Any], best: Mapping[str, Any], measure: str) -> list[dict[str, Any]]:
    """One row per metric: its final score with interval, its best validation score, and its signature. `measure` is the
    loss unit.
    """
    rows: list[dict[str, Any]] = []
    non_scores = ("step", "seconds", "beam", "judged", "judged_of")
    names = [
        name for name, item in {**best, **final}.items() if isinstance(item, (int, float)) and name not in non_scores
    ]
    for name in sorted(names, key="samples".__eq__):  # samples come last
        interval = final.get(f"{name}_interval")
        row: dict[str, Any] = {"metric": f"loss, {measure}" if name == "loss" else title(name)}
        row[final.get("split", "test")] = format_metric(name, final[name]) if name in final else None
        row["95 % interval"] = format_interval(*interval, share=is_rate(name)) if interval else None
        if final.get("split") != "validation":
            row["best validation"] = format_metric(name, best[name]) if name in best else None
        row["signature"] = final.get(f"{name}_signature")
        rows.append(row)
    return drop_empty_columns(rows)


def drop_empty_columns(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Table rows without the columns that are None in all rows."""
    empty = [key for key in (rows[0] if rows else ()) if all(row[key] is None for row in rows)]
    return [{key: item for key, item in row.items() if key not in empty} for row in rows]


def repeat_command(directory: Path, summary: Mapping[str, Any]) -> str:
    """The command that repeats the training of a run (bit for bit on the same machine)."""
    words = ["headway", "train", str(directory / "recipe.json"), "--run", f"{directory}-again"]
    words += ["--threads", str(summary.get("threads", 1))]
    if summary.get("device") == "cpu":
        words += ["--device", "cpu"]
    if summary.get("deterministic"):
        words.append("--deterministic")
    return shlex.join(words)


def with_results(run: Run, final: Mapping[str, Any], samples: Sequence[Mapping[str, str]]) -> Run:
    """The run with its final scores (on the split "split") and samples in its summary.

    Samples of exact-match tasks are marked as right or wrong.
    """
    exact, marked = any(name in final for name in RATE_METRICS), []
    for sample in samples:
        mark = {}
        if exact and "output" in sample and "reference" in sample:
            mark[""] = "✓" if sample["output"] in sample["reference"].split(" | ") else "✗"
        marked.append({**mark, **sample})
    return replace(run, summary={**run.summary, "scores": dict(final), "samples": marked})
