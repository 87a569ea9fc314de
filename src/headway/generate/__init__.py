"""Generation: sampling, batched sessions, a scheduler, beam search, and log probabilities of given tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.generate.courses import Course, Next, Told, step_together
    from headway.generate.sampling import GREEDY, Sampler, Sampling
    from headway.generate.scheduler import FullError, Request, Rule, Said, Scheduler, SchedulerState
    from headway.generate.score import Nats, score_ids, score_targets, strided_nats
    from headway.generate.search import (
        Constraint,
        Hypothesis,
        SearchConfig,
        beam_search,
        drawing,
        searching,
        translate_ids,
    )
    from headway.generate.session import Completion, Event, Limits, Session
    from headway.generate.speculation import check_draft

__all__ = [
    "GREEDY",
    "Completion",
    "Constraint",
    "Course",
    "Event",
    "FullError",
    "Hypothesis",
    "Limits",
    "Nats",
    "Next",
    "Request",
    "Rule",
    "Said",
    "Sampler",
    "Sampling",
    "Scheduler",
    "SchedulerState",
    "SearchConfig",
    "Session",
    "Told",
    "beam_search",
    "check_draft",
    "drawing",
    "score_ids",
    "score_targets",
    "searching",
    "step_together",
    "strided_nats",
    "translate_ids",
]
lazily(
    __name__,
    {
        ".courses": ("Course", "Next", "Told", "step_together"),
        ".sampling": ("GREEDY", "Sampler", "Sampling"),
        ".scheduler": ("FullError", "Request", "Rule", "Said", "Scheduler", "SchedulerState"),
        ".score": ("Nats", "score_ids", "score_targets", "strided_nats"),
        ".search": (
            "Constraint",
            "Hypothesis",
            "SearchConfig",
            "beam_search",
            "drawing",
            "searching",
            "translate_ids",
        ),
        ".session": ("Completion", "Event", "Limits", "Session"),
        ".speculation": ("check_draft",),
    },
)
