"""Generation: sampling, sessions over ragged batches, beam search, and scores of given texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.generate.draft import check_draft
    from headway.generate.drawn import draw_on
    from headway.generate.sampling import GREEDY, Sampler, Sampling
    from headway.generate.score import score_ids, score_targets
    from headway.generate.search import Hypothesis, Rule, SearchConfig, beam_search, search_on
    from headway.generate.session import Completion, Event, Session
    from headway.generate.stopping import Limits
    from headway.generate.stride import Nats, strided_nats
    from headway.generate.translate import translate_ids

__all__ = [
    "GREEDY",
    "Completion",
    "Event",
    "Hypothesis",
    "Limits",
    "Nats",
    "Rule",
    "Sampler",
    "Sampling",
    "SearchConfig",
    "Session",
    "beam_search",
    "check_draft",
    "draw_on",
    "score_ids",
    "score_targets",
    "search_on",
    "strided_nats",
    "translate_ids",
]
lazily(
    __name__,
    {
        ".draft": ("check_draft",),
        ".drawn": ("draw_on",),
        ".sampling": ("GREEDY", "Sampler", "Sampling"),
        ".score": ("score_ids", "score_targets"),
        ".search": ("Hypothesis", "Rule", "SearchConfig", "beam_search", "search_on"),
        ".session": ("Completion", "Event", "Session"),
        ".stopping": ("Limits",),
        ".stride": ("Nats", "strided_nats"),
        ".translate": ("translate_ids",),
    },
)
