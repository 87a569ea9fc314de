import json, subprocess, itertools, sys, time
from pathlib import Path
from urllib.parse import unquote, urlparse

class Pyright:
    def __init__(self, root, executable):
        self.root = Path(root).resolve()
        self.process = subprocess.Popen([executable, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=self.root, stderr=subprocess.DEVNULL)
        self.ids = itertools.count()
        self.request("initialize", {"processId": None, "rootUri": self.root.as_uri(), "workspaceFolders": [{"uri": self.root.as_uri(), "name": "w"}],
            "capabilities": {"workspace": {"configuration": True, "workspaceFolders": True}}})
        self.notify("initialized", {})
        self.opened = set()
    def send(self, message):
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body); self.process.stdin.flush()
    def notify(self, method, params): self.send({"method": method, "params": params})
    def read(self):
        length = 0
        while (line := self.process.stdout.readline().strip()):
            if line.lower().startswith(b"content-length"): length = int(line.split(b":")[1])
        return json.loads(self.process.stdout.read(length))
    def request(self, method, params):
        number = next(self.ids); self.send({"id": number, "method": method, "params": params})
        while True:
            m = self.read()
            if "method" in m and "id" in m:
                self.send({"id": m["id"], "result": [{"pythonPath": str(self.root/".venv/bin/python"), "analysis": {"diagnosticMode": "openFilesOnly", "autoSearchPaths": True}} if i.get("section")=="python" else None for i in m["params"]["items"]] if m["method"] == "workspace/configuration" else None})
            elif m.get("id") == number:
                if "error" in m: raise RuntimeError(m["error"])
                return m["result"]
    def definitions(self, path, line, column):
        """Places (path or "" outside the workspace, line, column) that define what stands there; lines from 0 in, 1 out."""
        full = self.root / path
        if full not in self.opened:
            self.opened.add(full)
            self.notify("textDocument/didOpen", {"textDocument": {"uri": full.as_uri(), "languageId": "python", "version": 1, "text": full.read_text()}})
        answer = self.request("textDocument/definition", {"textDocument": {"uri": full.as_uri()}, "position": {"line": line, "character": column}}) or []
        places = []
        for one in answer if isinstance(answer, list) else [answer]:
            uri, span = one.get("uri") or one["targetUri"], one.get("range") or one["targetSelectionRange"]
            where = Path(unquote(urlparse(uri).path))
            inside = where.is_relative_to(self.root) and ".venv" not in where.parts
            places.append((str(where.relative_to(self.root)) if inside else "", span["start"]["line"] + 1, span["start"]["character"]))
        return places
    def references(self, path, line, column):
        path = (self.root / path)
        if path not in self.opened:
            self.opened.add(path)
            self.notify("textDocument/didOpen", {"textDocument": {"uri": path.as_uri(), "languageId": "python", "version": 1, "text": path.read_text()}})
        found = self.request("textDocument/references", {"textDocument": {"uri": path.as_uri()}, "position": {"line": line - 1, "character": column}, "context": {"includeDeclaration": True}}) or []
        return [(str(Path(unquote(urlparse(r["uri"]).path)).relative_to(self.root)), r["range"]["start"]["line"] + 1, r["range"]["start"]["character"]) for r in found if r["uri"].startswith(self.root.as_uri())]

if __name__ == "__main__":
    t = time.time(); p = Pyright(sys.argv[1], sys.argv[2]); print("init", time.time() - t)
    for path, needle in [a.split("::") for a in sys.argv[3:]]:
        text = (p.root / path).read_text().split("\n")
        n, k = next((i, l) for i, l in enumerate(text) if needle in l)
        name = needle.split()[-1].rstrip(":(,=")
        t = time.time(); r = p.references(path, n + 1, k.index(needle) + needle.rindex(name)); print(needle, len(r), round(time.time() - t, 2)); 
        from collections import Counter; print(Counter(x[0] for x in r).most_common(8))
