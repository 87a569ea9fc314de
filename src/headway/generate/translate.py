"""Translation of any number of sources: batches of alike lengths, results in the order asked for."""

from __future__ import annotations

from collections.abc import Sequence

from headway.errors import UserError
from headway.generate.prompts import (
    Ids,
    batches,
    check_ids,
    check_prompts,
    check_sources,
    context_of,
    device_of,
    make_prompt,
)
from headway.generate.search import Hypothesis, SearchConfig, beam_search
from headway.models import Generative

_SEARCH = SearchConfig()


def translate_ids(
    model: Generative,
    sources: Sequence[Ids],
    *,
    begin: int,
    end: int,
    config: SearchConfig = _SEARCH,
    prefixes: Sequence[Ids] | None = None,
    suppressed: Ids = (),
    batch_tokens: int = 16384,
) -> list[list[Hypothesis]]:
    """The `n_best` translations of each source, best first, without `begin` and `end`.

    `begin` is what decoding starts with, whatever that symbol means elsewhere (Marian: padding). `prefixes` are
    what each translation must begin with; they are part of the ids and of the length that is allowed, not of the
    score. `suppressed` symbols are never written. Sources are read as they are: add what the model was trained
    with. A source of no symbols has one translation, of none. `batch_tokens` bounds the positions that are held at
    once, those of all beams counted.
    """
    forced = [()] * len(sources) if prefixes is None else prefixes
    if len(forced) != len(sources):
        raise UserError(f"{len(forced)} prefixes do not match {len(sources)} sources; give one for each")
    context = context_of(model)
    prompts = [[begin, *prefix] for prefix in forced]
    check_sources(model, sources)
    check_prompts(model, prompts)
    check_ids("suppressed symbol", [suppressed], model.config.symbols)
    limits = [max(1, config.limit(len(source)) - len(prefix)) for source, prefix in zip(sources, forced)]
    if context is not None:
        limits = [min(limit, context - len(prompt)) for limit, prompt in zip(limits, prompts)]
    results = [[Hypothesis(list(prefix), 0.0, 0.0, True)] for prefix in forced]
    spoken = [i for i, source in enumerate(sources) if len(source)]
    sizes = [len(sources[i]) + config.beam * (len(prompts[i]) + limits[i]) for i in spoken]
    for batch in batches(sizes, batch_tokens):
        chosen = [spoken[i] for i in batch]
        prompt = make_prompt([prompts[i] for i in chosen], [sources[i] for i in chosen], device_of(model))
        found = beam_search(model, prompt, [limits[i] for i in chosen], end, config, suppressed)
        for i, hypotheses in zip(chosen, found):
            results[i] = [h._replace(ids=[*forced[i], *h.ids]) for h in hypotheses]
    return results
