"""Generation: sampling, sessions over ragged batches, beam search, and scores of given texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.generate.sampling import GREEDY, Sampler, Sampling
    from headway.generate.scheduler import FullError, Request, Rule, Said, Scheduler, SchedulerState
    from headway.generate.score import Nats, score_ids, score_targets, strided_nats
    from headway.generate.search import (
        Constraint,
        Hypothesis,
        SearchConfig,
        beam_search,
        draw_on,
        search_on,
        translate_ids,
    )
    from headway.generate.session import Completion, Event, Limits, Session
    from headway.generate.speculation import check_draft

__all__ = [
    "GREEDY",
    "Completion",
    "Constraint",
    "Event",
    "FullError",
    "Hypothesis",
    "Limits",
    "Nats",
    "Request",
    "Rule",
    "Said",
    "Sampler",
    "Sampling",
    "Scheduler",
    "SchedulerState",
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
        ".sampling": ("GREEDY", "Sampler", "Sampling"),
        ".scheduler": ("FullError", "Request", "Rule", "Said", "Scheduler", "SchedulerState"),
        ".score": ("Nats", "score_ids", "score_targets", "strided_nats"),
        ".search": (
            "Constraint",
            "Hypothesis",
            "SearchConfig",
            "beam_search",
            "draw_on",
            "search_on",
            "translate_ids",
        ),
        ".session": ("Completion", "Event", "Limits", "Session"),
        ".speculation": ("check_draft",),
    },
)
