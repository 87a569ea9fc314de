"""Adapter from headway's language models to EleutherAI's lm-eval (extra `harness`): the three calls its tasks make.

import lm_eval
from headway.app.harness import HarnessModel

lm_eval.simple_evaluate(HarnessModel("runs/mine"), tasks=["lambada_openai"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

from headway.app.loading import load
from headway.app.model import Model
from headway.errors import UserError
from headway.generate import Limits, Sampling
from headway.generate.prompts import batches, pad
from headway.nn.models.kinds import is_causal

_BATCH_TOKENS = 8192  # maximum tokens of a batch
_NEW_TOKENS = 256  # if a task does not set a limit


class HarnessModel(LM):
    """A causal language model from a run, or a published one."""

    def __init__(self, model: Model | str | Path) -> None:
        super().__init__()
        self.model = model if isinstance(model, Model) else load(model)
        module = self.model.module
        if not is_causal(module):
            raise UserError(f"{self.model.directory} is not a causal language model; use one for lm-eval")
        self.module = module

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): log p in nats of the continuation, and whether it is the greedy one.

        A context that is too long is truncated on the left.
        """
        return self._score([self._split_ids(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p in nats of each text, in windows of the context length; each token is scored once."""
        totals = []
        for request in requests:
            ids = self.model.codec.encode(request.args[0])
            totals.append(sum(score for score, _ in self._score(self._rolling_windows(ids))))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A greedy (or, if the task requests it, sampled) continuation of each context, up to a stop string or any of
        the model's EOS tokens.
        """
        outputs = []
        for context, options in (request.args for request in requests):
            until = options.get("until") or ()
            stop = (until,) if isinstance(until, str) else tuple(text for text in until if text)
            max_new_tokens = int(options.get("max_gen_toks", _NEW_TOKENS))
            temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
            sampling = Sampling(temperature, top_p=float(options.get("top_p", 1.0)), seed=0)
            prompt = self.model.prompt_ids(context)
            if self.model.context is not None:
                prompt = prompt[-max(1, self.model.context - max_new_tokens) :]
            limits = Limits(max_new_tokens, stop, self.model.usage.ends)
            outputs.append(self.model.session.generate([prompt], sampling, limits)[0].text)
        return outputs

    def _split_ids(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of context and continuation; trailing spaces of the context belong to the continuation."""
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        context_ids = self.model.prompt_ids(context) if context else self._start_ids()
        all_ids = self.model.prompt_ids(context + continuation) if context else [*context_ids, *self._ids(continuation)]
        return context_ids, all_ids[len(context_ids) :] or self._ids(continuation)

    def _ids(self, text: str) -> list[int]:
        return self.model.codec.encode(text)

    def _start_ids(self) -> list[int]:
        """The ids before text without a context: BOS or EOS."""
        codec = self.model.codec
        start_id = next((token_id for token_id in (codec.bos_id, codec.eos_id) if token_id is not None), None)
        if start_id is None:
            raise UserError("this tokenizer has no BOS or EOS token, so the first token has no score; add one of them")
        return [start_id]

    def _rolling_windows(self, ids: list[int]) -> list[tuple[list[int], list[int]]]:
        """Chunks of at most the context length, each with as many preceding tokens as fit; BOS precedes the first."""
        size = self.model.context or len(ids) + 1
        all_ids, windows = [*self._start_ids(), *ids], []
        for start in range(1, len(all_ids), size):
            window = all_ids[start : start + size]
            context_start = max(0, start + len(window) - 1 - size)
            windows.append((all_ids[context_start:start], window))
        return windows

    @torch.inference_mode()
    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """log p of the continuation of each pair (context, continuation), and whether it is the greedy one."""
        context_size = self.model.context or max((len(a) + len(b) for a, b in pairs), default=0)
        # The last id is only predicted, so context + 1 ids fit.
        rows = [[*before, *after][-(context_size + 1) :] for before, after in pairs]
        scored: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        for batch in batches([len(row) for row in rows], _BATCH_TOKENS):
            features = self.module(*pad([rows[i][:-1] for i in batch], self.model.device)).x
            for x, i in zip(features, batch):
                count = min(len(pairs[i][1]), len(rows[i]) - 1)
                targets = torch.tensor(rows[i][-count:], device=x.device)
                predicting = x[len(rows[i]) - 1 - count : len(rows[i]) - 1]
                scores = self.module.heads["vocabulary"](predicting).log_softmax(-1)
                scored[i] = float(scores.gather(1, targets[:, None]).sum()), bool((scores.argmax(-1) == targets).all())
        return scored
