"""The marks of a published model (begin, end, padding, what a decoder starts with): read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.formats.durable import read_json, write_json
from headway.formats.settings import Settings
from headway.formats.usage import Usage

FILE = "generation_config.json"


def read_marks(directory: Path, settings: Settings) -> dict[str, Any]:
    """What config.json and generation_config.json say of them, as the fields of Usage; the latter has the last word."""
    path = directory / FILE
    later = read_json(path) if path.is_file() else {}
    if not isinstance(later, dict):
        raise UserError(f"{path} is not a mapping of settings; download it again")
    said = Settings({**settings.values, **{k: v for k, v in later.items() if v is not None}}, settings.source)
    forced = said.optional("forced_bos_token_id", int)
    bad = said.optional("bad_words_ids", list[list[int]]) or []
    return {
        "generation": later,
        "begin": said.optional("bos_token_id", int),
        "ends": _ends(said),
        "pad": said.optional("pad_token_id", int),
        "decoder_start": said.optional("decoder_start_token_id", int),
        "forced": () if forced is None else (forced,),
        "suppressed": tuple(row[0] for row in bad if len(row) == 1),
        "labels": _labels(settings.part("id2label")),
    }


def _ends(said: Settings) -> tuple[int, ...]:
    """One id or several, as files have either."""
    if isinstance(said.values.get("eos_token_id"), list):
        return tuple(said.get("eos_token_id", list[int]))
    end = said.optional("eos_token_id", int)
    return () if end is None else (end,)


def _labels(said: Settings) -> tuple[str, ...]:
    """The names of classes by their numbers, which JSON writes as texts."""
    try:
        return tuple(str(said.values[key]) for key in sorted(said.values, key=int))
    except (TypeError, ValueError):
        found = str(dict(said.values))
        raise UserError(f"{said.source} is {found:.80}; its keys should be the numbers of classes") from None


def written_marks(usage: Usage) -> dict[str, Any]:
    """The settings for config.json that `usage` knows."""
    ends = list(usage.ends)
    found = {
        "bos_token_id": usage.begin,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": usage.pad,
        "decoder_start_token_id": usage.decoder_start,
    }
    return {name: value for name, value in found.items() if value is not None}


def write_marks(directory: Path, usage: Usage) -> None:
    """generation_config.json, for a model that generates; what the file said beyond the marks stays as it was."""
    settings = {**usage.generation, **written_marks(usage)}
    if usage.forced:
        settings["forced_bos_token_id"] = usage.forced[0]
    if usage.suppressed and "bad_words_ids" not in settings:
        settings["bad_words_ids"] = [[symbol] for symbol in usage.suppressed]
    if settings:
        write_json(directory / FILE, settings)
