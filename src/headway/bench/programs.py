"""The programs that are measured, and what each can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from headway.bench.job import Kind
from headway.errors import UserError, nearest

OURS = "headway"
FORMS = ("fp32", "int8", "int4")
_FINER = {"int4": "int8", "int8": "fp32", "bf16": "fp32"}  # what a peer without a form is measured in


@dataclass(frozen=True)
class Peer:
    """`module` is what is imported where the peer is installed, by `package`; `forms` are those it has, by its own
    names for them; `prepares` says whether it turns the published folder into a form of its own first.
    """

    module: str
    package: str
    kinds: tuple[Kind, ...]
    forms: Mapping[str, str]
    prepares: bool = True


PEERS = {
    "transformers": Peer(
        "transformers",
        "transformers>=5",
        ("decode", "prefill", "translate", "train", "load"),
        {"fp32": "fp32", "bf16": "bf16"},
        prepares=False,
    ),
    "ctranslate2": Peer(
        "ctranslate2", "ctranslate2>=4.8", ("decode", "prefill", "translate"), {"fp32": "fp32", "int8": "int8"}
    ),
    "llama.cpp": Peer(
        "llama_cpp",
        "llama-cpp-python>=0.3",
        ("decode", "prefill"),
        {"fp32": "F32", "int8": "Q8_0", "int4": "Q4_0"},
    ),
}


@dataclass(frozen=True)
class Program:
    """A program with its weights in one form, measured as one."""

    name: str
    form: str

    @property
    def title(self) -> str:
        return f"{self.name} {PEERS[self.name].forms[self.form] if self.name in PEERS else self.form}"

    @property
    def module(self) -> str:
        """What its process runs."""
        return f"headway.bench.peers.{self.name.replace('.', '_')}" if self.name in PEERS else "headway.bench.ours"

    @property
    def prepares(self) -> bool:
        return self.name in PEERS and PEERS[self.name].prepares


def programs(kind: Kind, forms: Sequence[str], against: Sequence[str]) -> list[Program]:
    """headway in each of `forms`, and each peer in those of them that it has, or the next finer ones."""
    found = [Program(OURS, form) for form in forms]
    for name in against:
        found += [Program(name, _form(PEERS[name], form)) for form in forms]
    return list(dict.fromkeys(found))


def comparisons(found: Sequence[Program]) -> dict[str, list[Program]]:
    """For headway in each form, by its title, the peers that it is to be compared with."""
    ours = [program for program in found if program.name == OURS]
    peers = [program for program in found if program.name != OURS]
    return {own.title: [p for p in peers if p.form == _form(PEERS[p.name], own.form)] for own in ours}


def _form(peer: Peer, form: str) -> str:
    while form not in peer.forms:
        form = _FINER[form]
    return form


def check_peers(kind: Kind, against: Sequence[str]) -> None:
    """UserError for a peer that is not known, that does not do this, or that is not installed."""
    for name in against:
        if name not in PEERS:
            raise UserError(f"there is no program {name!r} to measure against; {nearest(name, PEERS)}")
        if kind not in PEERS[name].kinds:
            able = ", ".join(other for other, peer in PEERS.items() if kind in peer.kinds)
            raise UserError(f"{name} is not measured at {kind}; choose from: {able}")
    for name in against:
        if find_spec(PEERS[name].module) is None:
            package = PEERS[name].package
            raise UserError(f"{name} is not installed, so nothing can be measured against it; pip install '{package}'")
