"""Model inputs of queries and documents: two texts with special tokens, or the prompt of a language model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from headway.codecs import Codec
from headway.codecs.chat_template import ChatTemplate, Locator
from headway.codecs.tokenizer import SequenceTemplate, TokenizerCodec
from headway.errors import UserError
from headway.formats.sentence_transformers import formats_pairs
from headway.formats.usage import Usage
from headway.learn.token_rows import LengthLimit, TokenRows, concatenate_rows, frame_rows
from headway.nn.models import TransformerConfig

_MARKS = {"system": "headwayinstruction", "query": "headwayquery", "document": "headwaydocument"}  # replaced by texts
_ANY_MARK = re.compile(f"({'|'.join(_MARKS.values())})")


class PairInputs:
    """Makes the inputs of a model that scores a document for a query. `instruction` replaces the one in the prompt of a
    language model; other models have none.
    """

    def __init__(
        self,
        codec: Codec,
        model: TransformerConfig,
        usage: Usage,
        frame: SequenceTemplate,
        instruction: str | None = None,
    ) -> None:
        """UserError for an instruction that the model does not take, and a template that formats no pairs."""
        limits = [limit for limit in (model.context, usage.sentence.max_length) if limit is not None]
        self._codec, self._frame, self._max_length = codec, frame, min(limits, default=None)
        self._prompt: tuple[Locator, list[str], str] | None = None
        if not formats_pairs(usage.template) or not model.stack.causal or not isinstance(codec, TokenizerCodec):
            if instruction is not None:
                raise UserError("this model takes no instruction; remove it, or use a model such as Qwen3-Reranker")
            return
        default = usage.sentence.prompts.get(usage.sentence.default_prompt or "", "").strip()
        instruction = (instruction or default).strip()
        roles = [role for role in _MARKS if role != "system" or instruction]
        template = ChatTemplate(usage.template or "", codec.special_tokens)
        messages = [{"role": role, "content": _MARKS[role]} for role in roles]
        parts = _ANY_MARK.split(template.render(messages, add_generation_prompt=True))
        if parts[1::2] != [_MARKS[role] for role in roles]:
            raise UserError(
                f"{template.source} does not contain the {', the '.join(roles).replace('system', 'instruction')} in "
                "this order; use the template that came with the model"
            )
        self._prompt = Locator(codec), parts, instruction

    def rows(
        self, queries: Sequence[str], documents: Sequence[str], truncate: bool, locate: Callable[[int], str]
    ) -> TokenRows:
        """A row for each query with its document, which `locate` names in errors. UserError for a row that is too long,
        unless it may be truncated: in a prompt the document, otherwise the longer text first.
        """
        if self._prompt is not None:
            pairs = enumerate(zip(queries, documents))
            return TokenRows(*concatenate_rows([self._prompt_row(*pair, truncate, locate(row)) for row, pair in pairs]))
        distinct = list(dict.fromkeys(queries))
        by_query = dict(zip(distinct, self._codec.encode_batch(distinct)))
        query_ids, document_ids = [by_query[query] for query in queries], self._codec.encode_batch(list(documents))
        available = self._max_length and self._max_length - self._frame.num_special_tokens(2)
        for row, (query, document) in enumerate(zip(query_ids, document_ids)):
            if available is not None and not truncate and len(query) + len(document) > available:
                raise UserError(
                    f"{locate(row)} has {len(document)} tokens and the query {len(query)}, but the model takes "
                    f"{available} for both together; shorten or truncate them (truncate=True, --truncate)"
                )
        return frame_rows(self._frame, query_ids, document_ids, LengthLimit(self._max_length, truncate), locate)

    def _prompt_row(self, query: str, document: str, truncate: bool, location: str) -> list[int]:
        """The ids of the prompt. Text in it that looks like special tokens stays text."""
        assert self._prompt is not None
        locator, parts, instruction = self._prompt
        texts = dict(zip(_MARKS.values(), (instruction, query, document)))
        pieces = [locator.guard.value(texts[part]) if number % 2 else part for number, part in enumerate(parts)]
        tokens = locator.tokens("".join(pieces))
        ids, limit = [token.id for token in tokens], self._max_length or len(tokens)
        start, stop = (sum(map(len, pieces[:count])) for count in (len(pieces) - 2, len(pieces) - 1))
        suffix = sum(token.start >= stop for token in tokens)
        fixed = sum(token.start < start for token in tokens) + suffix
        if len(ids) > limit and (not truncate or fixed >= limit):
            raise UserError(
                f"{location} has {len(ids) - fixed} tokens and the prompt with the query {fixed}, but the model takes "
                f"{limit} for both together; shorten or truncate them (truncate=True, --truncate)"
            )
        end = len(ids) - suffix
        return [*ids[: min(end, limit - suffix)], *ids[end:]]
