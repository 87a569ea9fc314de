"""Cases of `same_cases.py` that use runs of its recipes: servers, beams, speculation, chess, robots, comparisons."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

import headway as hw
from same_facts import (
    Facts,
    command,
    command_output,
    command_result,
    digest,
    file_facts,
    run_facts,
    settings_words,
    without_volatile,
)
from same_verbs import LINE, beam_calls, call_facts, caption_calls, generation_calls, sound_file
from samples import drawn

MESSAGES = [{"role": "user", "content": "ba be"}]
LONGER = [{"role": "system", "content": LINE}, *MESSAGES, {"role": "assistant", "content": "eb ab"}, *MESSAGES]
CHAT = {"model": "instruct", "messages": MESSAGES, "max_tokens": 8}
COMPLETION = {"model": "text", "prompt": LINE, "max_tokens": 8}
GREEDY = {"temperature": 0}
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 7}
OLLAMA = {"seed": 3, "num_predict": 8}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOUR | {"additionalProperties": False}}}
TOOL = {"type": "function", "function": {"name": "paint", "parameters": COLOUR}}
SERVED = ("text", "instruct", "translation", "masked", "classification", "tagging", "embedding")

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat greedy": ("/v1/chat/completions", CHAT | GREEDY | {"logprobs": True, "top_logprobs": 3}),
    "chat sampled": ("/v1/chat/completions", CHAT | SAMPLED | {"n": 2, "logprobs": True}),
    "chat longer": ("/v1/chat/completions", CHAT | SAMPLED | {"messages": LONGER, "frequency_penalty": 0.5}),
    "chat stream greedy": ("/v1/chat/completions", CHAT | GREEDY | STREAM | {"logprobs": True}),
    "chat stream sampled": ("/v1/chat/completions", CHAT | SAMPLED | STREAM),
    "chat schema": ("/v1/chat/completions", CHAT | SAMPLED | {"response_format": SCHEMA, "max_tokens": 40}),
    "completion greedy": ("/v1/completions", COMPLETION | GREEDY | {"logprobs": 2}),
    "completion sampled": ("/v1/completions", COMPLETION | SAMPLED | {"prompt": ["the", "a "], "n": 2, "logprobs": 1}),
    "completion echo": ("/v1/completions", COMPLETION | GREEDY | {"echo": True, "logprobs": 1, "max_tokens": 1}),
    "completion stop": ("/v1/completions", COMPLETION | SAMPLED | {"stop": ["e", "a"], "logit_bias": {"70": 3}}),
    "completion stream greedy": ("/v1/completions", COMPLETION | GREEDY | STREAM),
    "completion stream sampled": ("/v1/completions", COMPLETION | SAMPLED | STREAM | {"logprobs": 2}),
    "response": ("/v1/responses", {"model": "instruct", "input": "ba be", "max_output_tokens": 8, **GREEDY}),
    "ollama chat": ("/api/chat", {"model": "instruct", "messages": MESSAGES, "stream": False, "options": OLLAMA}),
    "ollama generate": ("/api/generate", {"model": "text", "prompt": LINE, "stream": False, "options": OLLAMA}),
    "tokenize": ("/tokenize", {"model": "text", "content": LINE}),
    "score": ("/v1/score", {"model": "text", "texts": [LINE]}),
    "translate": ("/v1/translate", {"model": "translation", "lines": ["ba be", "the first"]}),
    "fill": ("/v1/fill", {"model": "masked", "text": "ba [MASK] be"}),
    "classify": ("/v1/classify", {"model": "classification", "items": [LINE]}),
    "tag": ("/v1/tag", {"model": "tagging", "texts": [LINE]}),
    "embeddings": ("/v1/embeddings", {"model": "embedding", "input": [LINE, "ba"]}),
    "refused field": ("/v1/chat/completions", CHAT | {"colour": "red"}),
    "refused model": ("/v1/completions", COMPLETION | {"model": "none"}),
    "refused tool": ("/v1/chat/completions", CHAT | {"tools": [TOOL]}),  # the chat template has none
}


def served_facts(folder: Path) -> Facts:
    """What a server of several models answers, to one client and to two at once."""
    models = folder / "served" / "models"
    models.mkdir(parents=True, exist_ok=True)
    for name in SERVED:
        link = models / name
        link.unlink(missing_ok=True)
        link.symlink_to(folder / name / "run")
    with server(folder / "served", "--models", models) as url:
        facts: Facts = {name: answer(url, *request) for name, request in REQUESTS.items()}
        for name, fact in facts.items():
            if (fact["status"] == 200) == name.startswith("refused"):
                raise RuntimeError(f"the request {name!r} has the status {fact['status']}: {fact['answer']}")
        facts["at once"] = two_clients(url)
        remote = hw.connect(url, model="text")
        facts["remote"] = digest(remote.generate(["the", "a "], max_new_tokens=6, seed=3))
    return facts


@contextmanager
def server(folder: Path, *words: str | Path) -> Iterator[str]:
    """The address of `headway serve` with these arguments."""
    log = folder / "server.log"
    with log.open("w") as stderr:
        arguments = [*words, "--port", "0", "--threads", "1", "--no-access-log"]
        program = subprocess.Popen(command("serve", *arguments), stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        while (address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())) is None:
            if program.poll() is not None:
                raise RuntimeError(f"the server ended: {log.read_text()[-500:]}")
            time.sleep(0.05)
        yield address[0]
    finally:
        program.send_signal(signal.SIGTERM)
        program.wait(60)


def answer(url: str, path: str, body: Mapping[str, Any]) -> Facts:
    """The status and content of an answer; a stream's content is joined, because its division depends on time."""
    request = Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=120) as response:
            status, text = response.status, response.read().decode()
    except HTTPError as error:
        status, text = error.code, error.read().decode()
    content = joined(text) if text.startswith("data: ") else without_volatile(json.loads(text))
    return {"status": status, "answer": json.dumps(content, sort_keys=True)}


def joined(stream: str) -> Facts:
    """The texts, log probabilities, finish reasons and usage of a stream's events."""
    lines = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    facts: Facts = {"text": "", "logprobs": {}, "finish": [], "usage": events[-1].get("usage"), "end": lines[-1]}
    for choice in (choice for event in events for choice in event["choices"]):
        facts["text"] += choice.get("text") or choice.get("delta", {}).get("content") or ""
        for name, values in (choice.get("logprobs") or {}).items():
            facts["logprobs"].setdefault(name, []).extend(values or [])
        facts["finish"] += [choice["finish_reason"]] if choice.get("finish_reason") else []
    return facts


def two_clients(url: str) -> Facts:
    """The answers to two clients that send requests at the same time, each with its own conversation."""
    start = Barrier(2)

    def ask(number: int) -> list[str]:
        start.wait()
        answers = []
        for turn in range(4):
            settings = {**SAMPLED, "seed": 10 * number + turn, "max_tokens": 40, **(STREAM if turn % 2 else {})}
            answers.append(answer(url, "/v1/chat/completions", {**CHAT, **settings, "logprobs": True})["answer"])
            answers.append(answer(url, "/v1/completions", {**COMPLETION, **settings, "logprobs": 1})["answer"])
        return answers

    with ThreadPoolExecutor(2) as clients:
        return {f"client {number}": digest(answers) for number, answers in enumerate(clients.map(ask, range(2)))}


def draft_facts(folder: Path) -> Facts:
    """Speculative decoding: greedy and sampled, in Python and served."""
    run, draft = folder / "text" / "run", folder / "text-accumulated" / "run"
    scratch = folder / "speculation"
    scratch.mkdir(exist_ok=True)
    facts: Facts = call_facts(generation_calls(hw.load(run, draft=draft), scratch))
    chat, tutor = folder / "preference-from" / "run", folder / "instruct" / "run"
    facts["chat"] = hw.load(chat, draft=tutor).chat("ba be", max_new_tokens=12, temperature=0.8, seed=2)
    with server(scratch, run, "--draft", draft) as url:
        body = {"prompt": LINE, "max_tokens": 12, "logprobs": 1}
        facts["served greedy"] = answer(url, "/v1/completions", body | GREEDY)
        facts["served sampled"] = answer(url, "/v1/completions", body | SAMPLED)
    return facts


def beam_facts(folder: Path) -> Facts:
    """Beam search of each kind of decoder, on both backends and with quantised weights."""
    scratch = folder / "beams"
    scratch.mkdir(exist_ok=True)
    facts: Facts = {}
    for name in ("translation", "translation-lstm"):
        for kind, options in {"auto": {}, "torch": {"backend": "torch"}, "int8": {"weights": "int8"}}.items():
            model = hw.load(folder / name / "run", **options)
            facts[f"{name} {kind}"] = call_facts(beam_calls(model, scratch))
            facts[f"{name} {kind}"]["wide"] = digest(model.translate(["ba be bi bo", "x"], beam=8, n_best=8))
    model = hw.load(folder / "caption" / "run", backend="torch")
    facts["caption torch"] = call_facts(caption_calls(model, scratch))
    model = hw.load(folder / "transcription" / "run")
    facts["transcription"] = digest(model.transcribe(sound_file(scratch), beam=3, vad=False))
    return facts


# A UCI engine that ranks moves by a checksum of position and move.
UCI_ENGINE = """#!{python}
import sys, zlib
import chess
board, lines = chess.Board(), 1
for line in sys.stdin:
    words = line.split()
    if words == ["uci"]:
        print("option name MultiPV type spin default 1 min 1 max 500\\nuciok", flush=True)
    elif words == ["isready"]:
        print("readyok", flush=True)
    elif words[:4] == ["setoption", "name", "MultiPV", "value"]:
        lines = int(words[4])
    elif words[:1] == ["position"]:
        moves = words.index("moves") if "moves" in words else len(words)
        board = chess.Board() if words[1] == "startpos" else chess.Board(" ".join(words[2:moves]))
        for move in words[moves + 1 :]:
            board.push_uci(move)
    elif words[:1] == ["go"]:
        score = lambda move: zlib.crc32((board.fen() + move.uci()).encode()) % 400 - 200
        ranked = sorted(board.legal_moves, key=score, reverse=True)
        for number, move in enumerate(ranked[:lines], 1):
            print(f"info depth 1 multipv {{number}} score cp {{score(move)}} pv {{move.uci()}}")
        print(f"bestmove {{ranked[0].uci() if ranked else '0000'}}", flush=True)
    elif words == ["quit"]:
        break
"""
SUITE = """\
r1bqkbnr/pppp1ppp/2n5/4p3/2B1P3/5Q2/PPPP1PPP/RNB1K1NR w KQkq - bm Qxf7#; id "mate";
rnbqkbnr/ppp1pppp/8/3p4/4P3/8/PPPP1PPP/RNBQKBNR w KQkq - am Ke2; id "king";
"""


def chess_facts(folder: Path) -> Facts:
    """Puzzles, a suite and a match; its games and their labels are learned, and the models play through UCI."""
    run, scratch = folder / "chess" / "run", folder / "chess-games"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    (scratch / "suite.epd").write_text(SUITE)
    engine, games, labels = scratch / "engine", scratch / "games.pgn", scratch / "labels.csv"
    engine.write_text(UCI_ENGINE.format(python=sys.executable))
    engine.chmod(0o755)
    data = Path(os.environ["HEADWAY_DATA"]) / "chess"
    puzzles = data / "lichess_puzzles_8k.csv"
    facts: Facts = {}
    facts["puzzles"] = command_result("chess", "puzzles", run, puzzles, "--search", "policy", "--limit", "20")
    facts["suite"] = command_result("chess", "suite", run, scratch / "suite.epd", "--nodes", "30")
    words = [
        "--opponent",
        "random",
        "--games",
        "2",
        "--our-nodes",
        "4",
        "--openings",
        data / "lichess-openings-a.tsv",
        "--pgn",
        games,
    ]
    facts["match"] = command_result("chess", "match", run, *words)
    facts["games"] = digest([line for line in games.read_text().splitlines() if not line.startswith("[Date")])
    first, second = games.read_text().split("\n\n[Event ", 1)
    train, validation = scratch / "train.pgn", scratch / "validation.pgn"
    train.write_text(f"{first}\n")
    validation.write_text(f"[Event {second}")
    positions = puzzles.read_text().splitlines(keepends=True)[:60]
    (scratch / "positions.csv").write_text("".join(positions))
    facts["labelling"] = command_result("data", "label", "--out", labels, *labelling(scratch))
    facts["labels"] = digest(labels.read_text())
    facts |= resumed_label_facts(scratch)
    settings = {"model.width": 32, "model.depth": 1, "model.heads": 2, "train.steps": 2, "train.precision": "fp32"}
    files = {"chess games": [train, validation], "chess labels": [labels], "chess-searchless labels": [labels]}
    for name, paths in files.items():
        more = {"task.split.validation": 0.2} if labels in paths else {}
        data = [str(path) for path in paths]
        hw.train(name.split()[0], data, {**settings, **more}, run=scratch / name, threads=1, progress=False)
        facts[name] = run_facts(scratch / name)
    for name, search in (("chess labels", "puct"), ("chess labels", "value"), ("chess-searchless labels", "value")):
        facts[f"{name} by {search}"] = uci_facts(scratch / name, search)
    return facts


def labelling(scratch: Path) -> list[str | Path]:
    words = "--nodes 10 --lines 3 --vary 0.3 --workers 1"
    return [scratch / "train.pgn", scratch / "positions.csv", "--engine", scratch / "engine", *words.split()]


def resumed_label_facts(scratch: Path) -> Facts:
    """The labels after most of them are lost and made again."""
    part = scratch / "part.csv"
    lines = (scratch / "labels.csv").read_text().splitlines(keepends=True)
    part.write_text("".join(lines[:30]))
    command_output("data", "label", "--out", part, "--resume", *labelling(scratch))
    return {"resumed labels": digest(part.read_text())}


def reopened_chess_facts(folder: Path) -> Facts:
    """The labels of another revision continued, and its model played with."""
    facts = resumed_label_facts(folder / "chess-games")
    return {**chess_facts(folder), **facts}


def uci_facts(run: Path, search: str) -> Facts:
    """Moves and analyses of a model through UCI and python-chess."""
    import chess
    from chess import engine

    words = command("chess", "uci", run, "--search", search, "--threads", "1")
    with engine.SimpleEngine.popen_uci(words, timeout=120) as player:
        board, facts = chess.Board(), {}
        for ply in range(4):
            found = player.play(board, engine.Limit(nodes=20), info=engine.INFO_SCORE | engine.INFO_PV)
            facts[f"ply {ply}"] = f"{found.move} {found.info.get('score')} {found.info.get('pv')}"
            board.push(found.move or chess.Move.null())
        lines = player.analyse(board, engine.Limit(nodes=40), multipv=3)
        facts["analysis"] = str([(line.get("score"), line.get("pv")) for line in lines])
    return facts


ROBOT = {
    "model.width": 32, "model.depth": 1, "model.heads": 2, "train.steps": 2, "train.precision": "fp32",
    "train.batch_size": 8, "task.episodes": 0, "task.split.validation": 0.4,
}  # fmt: skip


def robot_facts(folder: Path) -> Facts:
    """Demonstrations recorded as LeRobotDataset folders, and policies that learn from them."""
    scratch = folder / "lerobot"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    arm, camera = ["metaworld/reach-v3", "--episodes", "2"], ["--cameras", "corner2", "--size", "32", "32"]
    pendulum = ["Pendulum-v1", "--episodes", "4", "--horizon", "30"]
    facts: Facts = {}
    for name, words in {"arm": arm, "camera": [*arm, *camera], "pendulum": pendulum}.items():
        facts[f"recorded {name}"] = command_result("data", "collect", *words, "--out", scratch / name)
        facts[f"files of {name}"] = file_facts(scratch / name)
    return {**facts, **learned_policy_facts(folder)}


def learned_policy_facts(folder: Path) -> Facts:
    """Policies that learn from the LeRobotDataset folders."""
    scratch = folder / "lerobot"
    camera = {"model.observation.images.patch": [16, 16]}
    facts: Facts = {}
    for name, more in {"arm": {}, "camera": camera, "pendulum": {}}.items():
        run = scratch / f"policy-{name}"
        shutil.rmtree(run, ignore_errors=True)
        hw.train("robotics", [str(scratch / name)], {**ROBOT, **more}, run=run, threads=1, progress=False)
        facts[f"policy of {name}"] = run_facts(run)
    return facts


POLICIES = ("act-older", "diffusion-numbers")  # of tests/parity/lerobot_policies.py


def published_policy_facts(folder: Path) -> Facts:
    """Policies in LeRobot's format: their actions, runs that fine-tune them, and the runs exported to that format."""
    sys.path.append(str(Path(__file__).parent.parent / "tests" / "parity"))
    import lerobot_policies

    scratch = folder / "lerobot-policies"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    states, actions = lerobot_policies.noise("states", (60, 11)), 4 * lerobot_policies.noise("actions", (60, 4))
    ends = np.arange(10, 70, 10)
    np.savez(scratch / "pushes.npz", states=states, actions=actions, rewards=np.zeros(60), ends=ends)
    facts: Facts = {}
    for name in POLICIES:
        start = lerobot_policies.write(name, scratch / name)
        facts[name] = {"actions": policy_actions(start), **fine_tuned_facts(scratch, start, f"{name} run")}
        hw.export(scratch / f"{name} run", scratch / f"{name} exported")
        facts[f"{name} exported"] = file_facts(scratch / f"{name} exported")
        facts[f"{name} again"] = fine_tuned_facts(scratch, scratch / f"{name} exported", f"{name} again")
    return facts


def reopened_policy_facts(folder: Path) -> Facts:
    """The policies that another revision exported: fine-tuned again."""
    scratch = folder / "lerobot-policies"
    facts: Facts = {}
    for name in POLICIES:
        facts[name] = {"fine-tuned actions": policy_actions(scratch / f"{name} run")}
        shutil.rmtree(scratch / f"{name} again")
        facts[f"{name} again"] = fine_tuned_facts(scratch, scratch / f"{name} exported", f"{name} again")
    return facts


def fine_tuned_facts(scratch: Path, start: Path, name: str) -> Facts:
    run = scratch / name
    settings = {name: value for name, value in ROBOT.items() if not name.startswith("model.")}
    data = [str(scratch / "pushes.npz")]
    hw.train("robotics", data, settings, run=run, from_=start, threads=1, progress=False)
    return {**run_facts(run), "fine-tuned actions": policy_actions(run)}


def policy_actions(path: Path) -> str:
    """The digest of the actions that a policy of 11 numbers predicts."""
    policy: Any = hw.load(path).policy()
    return digest(policy.predict_action_chunk({"state": np.linspace(-1, 1, 11, dtype=np.float32)}))


COMPARISON = {"model.width": 32, "model.depth": 1, "model.heads": 2, "task.size": 300, "train.precision": "fp32"}


def comparison_facts(folder: Path) -> Facts:
    """A comparison of two variants, and a copy of it as a kill in the second leaves it."""
    finished, stopped = folder / "comparison" / "finished", folder / "comparison" / "stopped"
    shutil.rmtree(finished.parent, ignore_errors=True)
    data = drawn("text", 240, folder / "data" / "text-240")
    words = ["--data", *data, "--set", *settings_words(COMPARISON), "model.mixer=attention,gru"]
    facts = command_result("compare", "text", *words, "--tokens", "12000", "--run", finished)
    shutil.copytree(finished, stopped)
    shutil.rmtree(stopped / "gru")
    return comparison_run_facts(facts, finished)


def continued_comparison_facts(folder: Path) -> Facts:
    """The facts of the copy once it is continued."""
    stopped = folder / "comparison" / "stopped"
    data = drawn("text", 240, folder / "data" / "text-240")
    words = ["--data", *data, "--set", *settings_words(COMPARISON), "model.mixer=attention,gru"]
    facts = command_result("compare", "text", *words, "--tokens", "12000", "--run", stopped, "--resume")
    return comparison_run_facts(facts, stopped)


def comparison_run_facts(result: Facts, run: Path) -> Facts:
    runs = {path.parent.name: run_facts(path.parent) for path in sorted(run.glob("*/run.json"))}
    return {"result": json.dumps(result, sort_keys=True), **runs}


def two_process_facts(folder: Path, settings: Mapping[str, Any]) -> Facts:
    """A text model trained by two processes on this machine."""
    run = folder / "two-processes" / "run"
    data = drawn("text", 240, folder / "data" / "text-240")
    words = ["text", "--data", *data, "--run", run, "--threads", "1", "--set", *settings_words(settings)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(command("train", *words), env={**shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    codes = [process.wait(timeout=300) for process in processes]
    if any(codes):
        raise RuntimeError("one of two processes failed")
    return run_facts(run)
