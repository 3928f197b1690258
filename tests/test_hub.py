"""Hub ids, against a hub on this machine: the requests that are made, and the errors for what it does not have."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import close_session, constants

from codegen_jax.data.tokenizer import load_tokenizer
from codegen_jax.errors import UserError
from codegen_jax.hub import hub_files
from codegen_jax.weights.open import open_model

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: one repository, someone/tiny, with the server's files.

    A file without content is listed, but its download is refused.
    """

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        time.sleep(server.pause)
        api, _, file = self.path.partition(f"/resolve/{COMMIT}/")
        if server.status:
            self.answer(b"", server.status, **server.headers)
        elif "someone/tiny" not in self.path:
            self.answer(b"", 404, **{"X-Error-Code": "RepoNotFound"})
        elif file and server.files[file] is None:
            self.answer(b"", 403)
        elif file:
            self.answer(server.files[file], **{"ETag": f'"{file}"', "X-Repo-Commit": COMMIT})
        elif "/tree/" in api:
            entries = [{"type": "file", "path": n, "size": len(c or ""), "oid": n} for n, c in server.files.items()]
            self.answer(json.dumps(entries).encode())
        else:
            self.answer(json.dumps({"id": "someone/tiny", "sha": COMMIT, "siblings": []}).encode())

    def answer(self, content, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@contextmanager
def served(files=None, pause=0.0, status=None, **headers):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.pause, server.status, server.headers, server.asked = files or {}, pause, status, headers, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def online(monkeypatch, tmp_path):
    """A function that makes a server the hub, with an empty cache and an empty working folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def use(port):
        endpoint = f"http://127.0.0.1:{port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        files = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        close_session()

    yield use
    close_session()


def refused(name, load=load_tokenizer):
    with pytest.raises(UserError) as error:
        load(name)
    return str(error.value)


@pytest.mark.parametrize("load", [load_tokenizer, open_model])
@pytest.mark.parametrize(
    "name",
    [
        "./runs/tini",
        "/no/such/model",
        "~/model",
        "$HOME/model",
        "a/b/c",
        "runs/",
        "runs/tini",
        "tin",
        "two words",
        "a\\b",
    ],
)
def test_the_hub_is_not_asked_for_what_can_only_be_a_path(online, tmp_path, name, load):
    (tmp_path / "work/runs/tiny").mkdir(parents=True)
    (tmp_path / "work/tiny").mkdir()
    (tmp_path / "work/runs/tiny/x").touch()
    with served() as hub:
        online(hub.server_port)
        message = refused("runs/tini" if name == "runs/" else name, load)
    assert hub.asked == [] and ": there is no such file or folder" in message


def test_a_slow_hub_is_waited_for_and_its_files_are_found_when_it_is_gone(online, tokenizer):
    with served(tokenizer.files(), pause=0.3) as hub:
        online(hub.server_port)
        assert load_tokenizer("someone/tiny").fingerprint == tokenizer.fingerprint
    for name in ("someone/tiny", "someone/tiny@main"):
        assert load_tokenizer(name).fingerprint == tokenizer.fingerprint
    assert "can't be reached (" in refused("someone/other")


def test_what_the_cache_has_is_found_though_a_folder_has_the_owners_name(online, tmp_path, tokenizer):
    with served(tokenizer.files()) as hub:
        online(hub.server_port)
        load_tokenizer("someone/tiny")
        (tmp_path / "work/someone").mkdir()
        asked = len(hub.asked)
        assert load_tokenizer("someone/tiny").fingerprint == tokenizer.fingerprint
        assert len(hub.asked) == asked
        assert refused("someone/tony").endswith("someone is empty; the hub's is someone/tony@main")
        refused("someone/tony@main")
        assert len(hub.asked) > asked


def test_the_first_of_the_files_that_a_repository_has_is_fetched(online):
    with served({"config.json": b"{}", "b.bin": b"x", "c.bin": b"y"}) as hub:
        online(hub.server_port)
        folder = hub_files("someone/tiny", ["*.json"], either=["a*.bin", "b*.bin", "c*.bin"])
    assert sorted(file.name for file in folder.iterdir()) == ["b.bin", "config.json"]


def test_what_the_cache_has_serves_where_a_download_fails(online, tmp_path, tokenizer):
    tokenizer.save(tmp_path / "cache/models--someone--tiny/snapshots" / COMMIT)
    with served(tokenizer.files() | {"added_tokens.json": None}) as hub:
        online(hub.server_port)
        assert load_tokenizer("someone/tiny").fingerprint == tokenizer.fingerprint
        message = refused("someone/tiny", open_model)
    assert message.startswith("someone/tiny: the hub's cache holds tokenizer.model of it, and lacks config.json and ")
    assert "; the hub's files can't be fetched (" in message and "403" in message


@pytest.mark.parametrize("load", [load_tokenizer, open_model])
def test_a_hub_that_never_answers_is_given_up_after_its_time(online, monkeypatch, load):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        online(silent.getsockname()[1])
        message = refused("someone/tiny", load)
    assert message.startswith(
        "someone/tiny: neither on this machine nor in the hub's cache, and the hub can't be reached"
    )
    assert "no answer in 1 s" in message


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "has no such repository, or a private one"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "has no revision old"),
        (403, {"X-Error-Code": "GatedRepo"}, "gives it to those whom its owner admits; ask"),
        (503, {}, "refuses (Server error '503 Service Unavailable'"),
    ],
)
def test_what_the_hub_refuses_is_told_from_a_hub_that_is_not_there(online, status, headers, words):
    with served(status=status, **headers) as hub:
        online(hub.server_port)
        message = refused("someone/tiny@old")
    assert f"nor in the hub's cache, and the hub {words}" in message
    assert "\n" not in message and "can't be reached" not in message


def test_a_name_that_is_nearly_something_here_is_suggested_where_the_hub_has_nothing(online, tmp_path):
    (tmp_path / "work/runs").mkdir()
    with served() as hub:
        online(hub.server_port)
        assert "neither on this machine (did you mean runs?)" in refused("runz/tiny", open_model)


def test_a_hub_that_must_not_be_asked_is_not(online, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with served() as hub:
        online(hub.server_port)
        assert refused("someone/tiny").endswith("the hub is not asked where HF_HUB_OFFLINE is set")
    assert hub.asked == []
