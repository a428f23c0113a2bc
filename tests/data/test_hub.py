"""A hub on this machine that answers what it is asked first, and then stalls or sends what a tokenizer needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from muse.catalog import HUB_CORPORA, NAMED
from muse.data.hub import _ways_out
from muse.params import ParamsError

GPT2 = "the gpt2 tokenizer"
CODE = """
import sys, time
from muse.data.corpora import load_corpus
from muse.data.hub import CorpusUnavailable
for corpus, tokenizer in (("wikitext-2", "corpus"), (sys.argv[1], "gpt2"))[-int(sys.argv[2]) :]:
    start = time.monotonic()
    try:
        found = load_corpus(corpus, tokenizer, splits=["test"], hub_timeout_seconds=float(sys.argv[3]))
        print(found.splits["test"].ids.tolist())
    except CorpusUnavailable as error:
        print(str(error).split(" Ways out")[0], round(time.monotonic() - start))
"""


@contextmanager
def hub(files: Path | None) -> Iterator[str]:
    """Answers questions about repositories; `files` are those of every model, and without them nothing else comes."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path in ("/api/models/openai-community/gpt2", "/api/datasets/Salesforce/wikitext"):
                self.answer(json.dumps({"id": self.path[5:], "sha": "0" * 40, "siblings": [], "tags": []}).encode())
            elif files is None and self.path != "/api/agent-harnesses":  # a question of the library's own
                ended.wait(60)
            elif files and (path := files / self.path.split("/")[-1]).is_file():
                self.answer(path.read_bytes())
            else:
                self.send_error(404, headers={"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET  # noqa: N815 - a name of the base class

        def answer(self, content: bytes) -> None:
            self.send_response(200)
            for name, value in {"X-Repo-Commit": "0" * 40, "ETag": f'"{len(content)}"'}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def send_error(self, code: int, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in (headers | {"X-Repo-Commit": "0" * 40, "Content-Length": "0"}).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


def ask(folder: Path, endpoint: str, questions: int, seconds: int) -> list[str]:
    (folder / "corpus").mkdir(exist_ok=True)
    (folder / "corpus" / "test.txt").write_text("a line \n")
    kept = {name: value for name, value in os.environ.items() if not name.endswith("OFFLINE")}
    away = {"HF_HOME": str(folder / "hf"), "HF_ENDPOINT": endpoint, "MUSE_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-c", CODE, str(folder / "corpus"), str(questions), str(seconds)]
    done = subprocess.run(command, env=kept | away, capture_output=True, text=True, timeout=200, check=True)
    return done.stdout.splitlines()


def test_a_hub_that_answers_and_then_stalls_is_away_within_seconds(tmp_path):
    with hub(None) as endpoint:
        answers = ask(tmp_path, endpoint, 2, seconds=1)
    for answer, what in zip(answers, ("corpus 'wikitext-2'", "the gpt2 tokenizer"), strict=True):
        reason = "download failed: the hub answered, then sent nothing for 1 s"
        assert answer.startswith(f"{what} is unavailable ({reason}).")
        assert int(answer.split()[-1]) < 40  # the libraries alone would try for minutes; imports take a part of it


@pytest.mark.parametrize("reason", ["HF_DATASETS_OFFLINE forbids a download " * 9, "short", "a\nb " * 99])
def test_what_is_away_is_said_in_a_line_that_is_shown_whole(reason):
    for corpus in HUB_CORPORA:
        for what, repo_type, file in ((f"corpus {corpus!r}", "dataset", "train.txt"), (GPT2, "model", "vocab.json")):
            line = f"{', '.join(NAMED)}: {_ways_out(what, repo_type, reason)}"
            assert str(ParamsError(line)) == line
            assert all(part in line for part in (what, file, "(1)", "(2)", "(3)"))


def test_a_tokenizer_comes_from_a_hub_that_sends_it(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a line \n"] * 5, vocab_size=262, show_progress=False, special_tokens=["<|endoftext|>"])
    bpe.save_model(str(tmp_path))
    with hub(tmp_path) as endpoint:
        (answer,) = ask(tmp_path, endpoint, 1, seconds=60)
    assert answer == str(bpe.encode("a line \n").ids)
