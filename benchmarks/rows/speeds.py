"""Rows of mixers, of the CPU engine and of the server."""

from __future__ import annotations

from collections.abc import Iterator

from rows.cells import Result, Row, rounded

ENGINE = {
    "decode": "decoding, batch {rows}",
    "prefill": "prefill of 512 tokens",
    "translate": "translating with beam 4, {rows} sentences at once",
    "train": "training, batch {rows}",
    "load": "loading",
}
PROGRAMS = {"transformers": "transformers fp32", "transformers-int8": "transformers int8"}
UNITS = {"tokens_per_second": "tokens/s", "sentences_per_second": "sentences/s", "seconds": "s"}


def recurrent(result: Result) -> Iterator[Row]:
    for kind, theirs in (("lstm", "nn.LSTM"), ("gru", "nn.GRU")):
        yield (
            f"{kind}, width 256, 256 tokens: time of a training step",
            f"{result[kind]['ratio']:.2f} times",
            theirs,
        )


def mixers(result: Result) -> Iterator[Row]:
    for name, length in result["faster_than_attention_from"].items():
        yield (
            f"{name}: shortest sequence from 128 to 8,192 that trains faster than with attention",
            f"{length:,} tokens" if length else "not reached",
            "causal attention",
        )


def engine(result: Result) -> Iterator[Row]:
    goal, programs = result["goal"], result["programs"]
    speeds = {title: rounded(each[goal]["median"]) for title, each in programs.items()}
    ours = ", ".join(f"{title.split()[-1]} {speed}" for title, speed in speeds.items() if title.startswith("headway "))
    theirs = ", ".join(f"{title} {speed}" for title, speed in speeds.items() if not title.startswith("headway "))
    has_cache = result["kind"] in ("decode", "prefill", "translate") and result["cache"] is not None
    cache = f", {result['cache']} KV cache" if has_cache else ""
    what = f"{ENGINE[result['kind']].format(**result)}, {result['shape']}{cache}"
    yield what, f"{ours} {UNITS[goal]}", f"{theirs} {UNITS[goal]}" if theirs else ""


def serve(result: Result) -> Iterator[Row]:
    speeds = lambda runs: ", ".join(rounded(each["tokens_per_second"]) for each in runs.values())  # noqa: E731
    requests = {
        "drawn": "sampling, prompts of 128 tokens",
        "known": "sampling, repeated prompts of 128 tokens",
        "greedy": "greedy, prompts of 128 tokens",
        "schema": "output that follows a JSON schema",
    }
    for how, clients in result["clients"].items():
        theirs = result.get("llama.cpp", {})  # not there in each environment
        peers = [f"llama.cpp Q8_0 {speeds(theirs[how])} tokens/s"] if how in theirs else []
        peers.append(f"`headway bench decode` {speeds(result['alone'])} tokens/s")
        yield (
            f"{result['shape']} {result['form']}, {', '.join(clients)} clients: {requests[how]}",
            f"{speeds(clients)} tokens/s",
            "; ".join(peers),
        )


def context(result: Result) -> Iterator[Row]:
    """The cache has the dtype of the weights: both fp32, or both int8."""
    for dtype, caches in result["weights"].items():
        near, far = (caches[dtype][position]["tokens_a_second"]["median"] for position in ("128", "8192"))
        size = caches[dtype]["8192"]["cache_bytes"]
        yield (
            f"decoding at position 8,192, {result['shape']}, {dtype} weights and KV cache of {size / 1e6:.0f} MB",
            f"{far:.0f} tokens/s",
            f"position 128: {near:.0f} tokens/s",
        )


def sentences(result: Result) -> Iterator[Row]:
    goal, unit = ("core_seconds", " s") if result["threads"] == 1 else ("sentences_per_second", " sentences/s")
    for model in ("all-minilm-l6-v2", "deberta-v3-xsmall"):
        programs = {name: part for name, part in result.get(model, {}).items() if goal in part}
        cells = {name: f"{rounded(part[goal]['median'])}{unit}" for name, part in programs.items()}
        if cells:
            yield (
                f"{result['sentences']:,} sentences, {model}, int8: {goal.replace('_', ' ')}",
                cells.pop("headway"),
                ", ".join(f"{PROGRAMS.get(name, name)} {cell}" for name, cell in cells.items()),
            )


def forms(result: Result) -> Iterator[Row]:
    for rows in (1, 128):
        speeds = {
            name.replace(", ", " "): each[f"int8, rows {rows}"]["gigaoperations_a_second"]
            for name, each in result["forms"].items()
            if "skipped" not in each
        }
        portable, *others = (f"{name} {speed:,.0f}" for name, speed in speeds.items())
        what = f"int8 matrix product of {rows} row{'s' * (rows > 1)}, one thread, by instruction set"
        yield what, f"{', '.join(others)} x 10^9 operations/s", portable


def rounding(result: Result) -> Iterator[Row]:
    for model in result["models"]:
        parts = {"fp32": model.get("fp32"), **{dtype: model[dtype]["both"] for dtype in ("int8", "int4")}}
        if "sentences" in model:
            what, scores = (
                "BLEU of {} on validation, greedy",
                {k: f"{part['bleu']['bleu']:.1f}" for k, part in parts.items()},
            )
        elif "questions" in model:
            what = "cosine between the vectors of {} and those in fp32"
            scores = {"fp32": "1", **{k: f"{part['cosine']:.4f}" for k, part in parts.items() if part}}
        else:
            what, scores = "perplexity of {}", {k: f"{part['perplexity']:.3f}" for k, part in parts.items()}
        ours = ", ".join(f"{dtype} {score}" for dtype, score in scores.items() if dtype != "fp32")
        yield what.format(model["model"]), ours, f"fp32 {scores['fp32']}"
