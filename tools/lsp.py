"""A client of pyright's language server: where a name is defined."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse


class Pyright:
    """Asks one process of the language server about the files below `root`."""

    def __init__(self, root: str, executable: str) -> None:
        self.root = Path(root).resolve()
        self._server = subprocess.Popen(
            [executable, "--stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.root,
        )
        self._ids = itertools.count()
        self._opened: set[Path] = set()
        folder = {"uri": self.root.as_uri(), "name": "workspace"}
        capabilities = {"workspace": {"configuration": True, "workspaceFolders": True}}
        self._request(
            "initialize",
            {"processId": None, "rootUri": folder["uri"], "workspaceFolders": [folder], "capabilities": capabilities},
        )
        self._send({"method": "initialized", "params": {}})

    def definitions(self, path: str, line: int, column: int) -> list[tuple[str, int, int]]:
        """Where the name at a place is defined: path ("" outside the workspace), line from 1, column.

        `line` and `column` count from 0.
        """
        full = self.root / path
        document = {"uri": full.as_uri()}
        if full not in self._opened:
            self._opened.add(full)
            content = {"languageId": "python", "version": 1, "text": full.read_text(encoding="utf-8")}
            self._send({"method": "textDocument/didOpen", "params": {"textDocument": {**document, **content}}})
        position = {"line": line, "character": column}
        answer = self._request("textDocument/definition", {"textDocument": document, "position": position}) or []
        places = []
        for one in answer if isinstance(answer, list) else [answer]:
            where = Path(unquote(urlparse(one.get("uri") or one["targetUri"]).path))
            start = (one.get("range") or one["targetSelectionRange"])["start"]
            inside = where.is_relative_to(self.root) and ".venv" not in where.parts
            places.append((str(where.relative_to(self.root)) if inside else "", start["line"] + 1, start["character"]))
        return places

    def _send(self, message: dict[str, Any]) -> None:
        assert self._server.stdin is not None
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._server.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._server.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        length = 0
        while line := self._server.stdout.readline().strip():
            if line.lower().startswith(b"content-length"):
                length = int(line.split(b":")[1])
        return json.loads(self._server.stdout.read(length))

    def _request(self, method: str, parameters: dict[str, Any]) -> Any:
        number = next(self._ids)
        self._send({"id": number, "method": method, "params": parameters})
        while True:
            message = self._receive()
            if "method" in message and "id" in message:  # the server asks for its configuration
                asked = message["params"].get("items", []) if message["method"] == "workspace/configuration" else []
                self._send({"id": message["id"], "result": [None for _ in asked] or None})
            elif message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(message["error"])
                return message["result"]
