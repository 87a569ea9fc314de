"""Generation: sampling, batched sessions, a scheduler, beam search, and token log probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.generate.sampling import GREEDY, Rule, Sampler, Sampling
    from headway.generate.scheduler import FullError, Request, Scheduler, SchedulerState
    from headway.generate.score import Nats, score_ids, score_targets, strided_nats
    from headway.generate.search import (
        Constraint,
        Hypothesis,
        SearchConfig,
        beam_search,
        sample_steps,
        search_steps,
        translate_ids,
    )
    from headway.generate.sequences import Completion, Event, Limits
    from headway.generate.session import Session
    from headway.generate.speculation import check_draft
    from headway.generate.stepper import DecodingCoroutine, NextTokens, StepOutput, step_together, with_graphs

__all__ = [
    "GREEDY",
    "Completion",
    "Constraint",
    "DecodingCoroutine",
    "Event",
    "FullError",
    "Hypothesis",
    "Limits",
    "Nats",
    "NextTokens",
    "Request",
    "Rule",
    "Sampler",
    "Sampling",
    "Scheduler",
    "SchedulerState",
    "SearchConfig",
    "Session",
    "StepOutput",
    "beam_search",
    "check_draft",
    "sample_steps",
    "score_ids",
    "score_targets",
    "search_steps",
    "step_together",
    "strided_nats",
    "translate_ids",
    "with_graphs",
]
lazy_exports(
    __name__,
    {
        ".sampling": ("GREEDY", "Rule", "Sampler", "Sampling"),
        ".scheduler": ("FullError", "Request", "Scheduler", "SchedulerState"),
        ".score": ("Nats", "score_ids", "score_targets", "strided_nats"),
        ".search": (
            "Constraint",
            "Hypothesis",
            "SearchConfig",
            "beam_search",
            "sample_steps",
            "search_steps",
            "translate_ids",
        ),
        ".sequences": ("Completion", "Event", "Limits"),
        ".session": ("Session",),
        ".speculation": ("check_draft",),
        ".stepper": ("DecodingCoroutine", "NextTokens", "StepOutput", "step_together", "with_graphs"),
    },
)
