"""The page in a browser: its size, the time until it can be used, and when the first token of an answer is on the
screen, next to when the server sends it.

    python benchmarks/page.py                        # stories260K of HEADWAY_DATA: half a minute
    python benchmarks/page.py MODEL --rounds 50      # another model that generates text
    python benchmarks/page.py --write                # and store the results

A plain client and the page take turns with one server. The page's time is from the key press to the first frame with
the token, the client's from the request to the event with the token; the difference is what the page takes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Page, sync_playwright

from measure import data_folder, spread, write

TOKENS, PROMPT = 20, "Once upon a time"
# Resolves with the milliseconds from a press of Control and Enter to the frame that shows the first token.
FIRST_TOKEN = """
() => new Promise((resolve) => {
  let pressed;
  addEventListener("keydown", (event) => { pressed = event.timeStamp; }, { capture: true, once: true });
  const shown = new MutationObserver(() => {
    if (!document.querySelector(".message:last-child .token")) return;
    shown.disconnect();
    requestAnimationFrame(() => {
      const frame = new MessageChannel();  // its message comes after the frame is painted
      frame.port1.onmessage = () => resolve(performance.now() - pressed);
      frame.port2.postMessage(null);
    });
  });
  shown.observe(document.querySelector(".messages"), { childList: true, subtree: true });
  const press = new KeyboardEvent("keydown", { key: "Enter", ctrlKey: true, bubbles: true });
  document.querySelector("#panel-write form textarea").dispatchEvent(press);
})
"""
# Milliseconds from the navigation to the frame in which the first form can be used.
INTERACTIVE = "() => document.querySelector('#panel-write form textarea') ? performance.now() : null"


@contextmanager
def served(model: Path) -> Iterator[int]:
    """The port of a server of this model."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "headway", "serve", str(model), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    try:
        for _ in range(600):
            with suppress(OSError):
                if fetch(port, "GET", "/ready")[0] == 200:
                    break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def fetch(port: int, method: str, path: str) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def server_first_token(port: int, name: str) -> float:
    """Milliseconds from a request like the page's to the first event with a token."""
    body = {"model": name, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0.8, "stream": True, "logprobs": 5}
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    started = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    while not json.loads(answer.readline().removeprefix(b"data: ") or b"{}")["choices"][0]["text"]:
        answer.readline()
    elapsed = time.perf_counter() - started
    answer.read()
    return 1000 * elapsed


def page_first_token(page: Page) -> float:
    page.get_by_role("button", name="New", exact=True).click()
    page.get_by_label("Text to continue").fill(PROMPT)
    elapsed = page.evaluate(FIRST_TOKEN)
    page.locator(".message").get_by_text("Cut off at the maximum length").wait_for()
    return elapsed


def measure(model: Path, rounds: int) -> dict[str, Any]:
    with served(model) as port, sync_playwright() as playwright:
        html = fetch(port, "GET", "/")[1]
        [name] = [entry["id"] for entry in json.loads(fetch(port, "GET", "/v1/models")[1])["data"]]
        server_first_token(port, name)  # loads the model
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        interactive = []
        for _ in range(max(5, rounds // 4)):
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}/")
            interactive.append(page.wait_for_function(INTERACTIVE, polling="raf").json_value())
            page.close()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_text("More settings").first.click()
        page.get_by_label("Maximum length").fill(str(TOKENS))
        page_first_token(page)
        by_page, by_client = [], []
        for _ in range(rounds):
            by_client.append(server_first_token(port, name))
            by_page.append(page_first_token(page))
        browser.close()
    return {
        "model": name,
        "bytes": len(html),
        "bytes_gzip": len(gzip.compress(html)),
        "interactive_ms": spread(interactive),
        "first_token_ms": {"page": spread(by_page), "client": spread(by_client)},
        "page_adds_ms": median(by_page) - median(by_client),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=data_folder() / "weights" / "stories260K.bin")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="store the results in benchmarks/results")
    arguments = parser.parse_args()
    result = measure(arguments.model, arguments.rounds)
    print(json.dumps(result, indent=2))
    if arguments.write:
        write("page", result)


if __name__ == "__main__":
    main()
