"""CTranslate2's part of a benchmark: `python -m headway.bench.peers.ctranslate2 prepare|measure JOB`."""

from __future__ import annotations

from typing import Any

import ctranslate2  # type: ignore[import-not-found]

from headway.bench.measurement import (
    BEAM_WIDTH,
    NEW_TOKENS,
    TARGET_TOKENS,
    WARMUP_TOKENS,
    BenchJob,
    run_job,
    time_call,
    time_step,
)
from headway.errors import UserError

_NAME = "ctranslate2"


class _IdVocabulary:
    """A vocabulary for a model without one: each token id as text. In a translation model, the last token starts the
    decoder, and the converter identifies it by name.
    """

    bos_token, eos_token, unk_token = "1", "0", "2"

    def __init__(self, job: BenchJob) -> None:
        self.words = [str(token) for token in range(job.symbols)]
        if job.kind == "translate":
            self.words[-1] = "<pad>"

    def get_vocab(self) -> dict[str, int]:
        return {word: token for token, word in enumerate(self.words)}

    def convert_ids_to_tokens(self, symbol: int) -> str:
        return self.words[symbol]


def prepare(job: BenchJob) -> None:
    """Convert the published folder with CTranslate2's converter, which needs transformers."""
    from ctranslate2.converters import TransformersConverter  # type: ignore[import-not-found]

    class Converter(TransformersConverter):
        def load_tokenizer(self, *_: Any, **__: Any) -> _IdVocabulary:
            return _IdVocabulary(job)

    try:
        converter = Converter(str(job.model))
        converter.convert(str(job.converted_path(_NAME)), quantization="int8" if job.form == "int8" else None)
    except (ValueError, NotImplementedError, ImportError) as error:
        raise UserError(f"ctranslate2 cannot convert this shape ({error}); remove it from --against") from None


def decode(job: BenchJob) -> dict[str, float]:
    """The time for all new tokens minus the time for one new token, which is mostly prefill."""
    generator, prompts = _generator(job), _to_words(job.prompts())
    _generate(generator, prompts, WARMUP_TOKENS)
    total, first_token = (time_call(lambda n=n: _generate(generator, prompts, n)) for n in (NEW_TOKENS, 1))
    return {"tokens_per_second": job.rows * (NEW_TOKENS - 1) / (total - first_token)}


def prefill(job: BenchJob) -> dict[str, float]:
    """The time for one new token after the prompts, minus the time for one new token after one token, to exclude the
    step.
    """
    generator, prompts = _generator(job), _to_words([[0, *row] for row in job.prompts()])
    total = time_step(lambda: _generate(generator, prompts, 1))
    step = time_step(lambda: _generate(generator, [row[:1] for row in prompts], 1))
    return {"tokens_per_second": sum(len(row) - 1 for row in prompts) / (total - step)}


def translate(job: BenchJob) -> dict[str, float]:
    """Beam search with a minimum length, so that all outputs have the same number of tokens."""
    translator = ctranslate2.Translator(str(job.converted_path(_NAME)), **_settings(job))
    sources = _to_words(job.sources())

    def work() -> None:
        outputs = translator.translate_batch(
            sources, beam_size=BEAM_WIDTH, min_decoding_length=TARGET_TOKENS, max_decoding_length=TARGET_TOKENS
        )
        assert {len(output.hypotheses[0]) for output in outputs} == {TARGET_TOKENS}

    work()
    seconds = time_call(work)
    return {"sentences_per_second": job.rows / seconds, "tokens_per_second": job.rows * TARGET_TOKENS / seconds}


def _settings(job: BenchJob) -> dict[str, Any]:
    compute_type = "int8" if job.form == "int8" else "float32"
    return {"device": "cpu", "compute_type": compute_type, "inter_threads": 1, "intra_threads": job.threads}


def _generator(job: BenchJob) -> Any:
    return ctranslate2.Generator(str(job.converted_path(_NAME)), **_settings(job))


def _to_words(rows: list[list[int]]) -> list[list[str]]:
    return [[str(token) for token in row] for row in rows]


def _generate(generator: Any, prompts: list[list[str]], count: int) -> None:
    outputs = generator.generate_batch(
        prompts, min_length=count, max_length=count, sampling_topk=1, include_prompt_in_result=False
    )
    assert {len(output.sequences[0]) for output in outputs} == {count}


_WORK = {"decode": decode, "prefill": prefill, "translate": translate}


def measure(job: BenchJob) -> dict[str, float]:
    return _WORK[job.kind](job)


if __name__ == "__main__":
    run_job(measure, prepare)
