"""Generation: sampling, sessions over ragged batches, beam search, and scores of given texts."""

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
