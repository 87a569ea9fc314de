"""CTranslate2's part of a benchmark: `python -m headway.bench.peers.ctranslate2 prepare|measure JOB`."""

from __future__ import annotations

from typing import Any

import ctranslate2  # type: ignore[import-not-found]

from headway.bench.run import BEAM, NEW, WARM, WRITTEN, Job, answer, seconds_of, seconds_of_a_step
from headway.errors import UserError

_NAME = "ctranslate2"


class _Symbols:
    """A vocabulary for a model without one: each token id as text. The last token of a translation model starts the
    decoder, and the converter identifies it by name.
    """

    bos_token, eos_token, unk_token = "1", "0", "2"

    def __init__(self, job: Job) -> None:
        self.words = [str(symbol) for symbol in range(job.symbols)]
        if job.kind == "translate":
            self.words[-1] = "<pad>"

    def get_vocab(self) -> dict[str, int]:
        return {word: symbol for symbol, word in enumerate(self.words)}

    def convert_ids_to_tokens(self, symbol: int) -> str:
        return self.words[symbol]


def prepare(job: Job) -> None:
    """Convert the published folder with CTranslate2's converter, which needs transformers."""
    from ctranslate2.converters import TransformersConverter  # type: ignore[import-not-found]

    class Converter(TransformersConverter):
        def load_tokenizer(self, *_: Any, **__: Any) -> _Symbols:
            return _Symbols(job)

    try:
        converter = Converter(str(job.model))
        converter.convert(str(job.place(_NAME)), quantization="int8" if job.form == "int8" else None)
    except (ValueError, NotImplementedError, ImportError) as error:
        raise UserError(f"ctranslate2 cannot convert this shape ({error}); remove it from --against") from None


def decode(job: Job) -> dict[str, float]:
    """The time of all new tokens minus that of one new token, which is mostly the prefill."""
    generator, prompts = _generator(job), _words(job.prompts())
    _write(generator, prompts, WARM)
    whole, first = (seconds_of(lambda n=n: _write(generator, prompts, n)) for n in (NEW, 1))
    return {"tokens_per_second": job.rows * (NEW - 1) / (whole - first)}


def prefill(job: Job) -> dict[str, float]:
    """The time of one new token after the prompts, minus that of one new token after one token: without the step."""
    generator, prompts = _generator(job), _words([[0, *row] for row in job.prompts()])
    whole = seconds_of_a_step(lambda: _write(generator, prompts, 1))
    step = seconds_of_a_step(lambda: _write(generator, [row[:1] for row in prompts], 1))
    return {"tokens_per_second": sum(len(row) - 1 for row in prompts) / (whole - step)}


def translate(job: Job) -> dict[str, float]:
    """Beam search with a minimum length, so that all have the same number of tokens."""
    translator = ctranslate2.Translator(str(job.place(_NAME)), **_settings(job))
    sources = _words(job.sources())

    def work() -> None:
        found = translator.translate_batch(
            sources, beam_size=BEAM, min_decoding_length=WRITTEN, max_decoding_length=WRITTEN
        )
        assert {len(each.hypotheses[0]) for each in found} == {WRITTEN}

    work()
    seconds = seconds_of(work)
    return {"sentences_per_second": job.rows / seconds, "tokens_per_second": job.rows * WRITTEN / seconds}


def _settings(job: Job) -> dict[str, Any]:
    form = "int8" if job.form == "int8" else "float32"
    return {"device": "cpu", "compute_type": form, "inter_threads": 1, "intra_threads": job.threads}


def _generator(job: Job) -> Any:
    return ctranslate2.Generator(str(job.place(_NAME)), **_settings(job))


def _words(rows: list[list[int]]) -> list[list[str]]:
    return [[str(symbol) for symbol in row] for row in rows]


def _write(generator: Any, prompts: list[list[str]], count: int) -> None:
    found = generator.generate_batch(
        prompts,
        min_length=count,
        max_length=count,
        sampling_topk=1,
        include_prompt_in_result=False,
    )
    assert {len(each.sequences[0]) for each in found} == {count}


_WORK = {"decode": decode, "prefill": prefill, "translate": translate}


def measure(job: Job) -> dict[str, float]:
    return _WORK[job.kind](job)


if __name__ == "__main__":
    answer(measure, prepare)
