"""Hub ids, with a local server as the hub: which requests are made, and which errors are raised."""

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
    """The part of the hub's API that a download needs: one repository, someone/tiny, with the server's files.

    A file without content is listed, but its download is refused.
    """

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        server.requests.append(self.path)
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
    server.files, server.pause, server.status, server.headers, server.requests = files or {}, pause, status, headers, []
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


def error_message(name, load=load_tokenizer):
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
def test_the_hub_is_not_queried_for_names_that_look_like_paths(online, tmp_path, name, load):
    (tmp_path / "work/runs/tiny").mkdir(parents=True)
    (tmp_path / "work/tiny").mkdir()
    (tmp_path / "work/runs/tiny/x").touch()
    with served() as hub:
        online(hub.server_port)
        message = error_message("runs/tini" if name == "runs/" else name, load)
    assert hub.requests == [] and ": no such file or folder" in message


def test_downloads_from_a_slow_hub_are_cached(online, tokenizer):
    with served(tokenizer.files(), pause=0.3) as hub:
        online(hub.server_port)
        assert load_tokenizer("someone/tiny").fingerprint == tokenizer.fingerprint
    for name in ("someone/tiny", "someone/tiny@main"):
        assert load_tokenizer(name).fingerprint == tokenizer.fingerprint
    assert "the hub is unreachable (" in error_message("someone/other")


def test_cached_files_are_found_even_if_a_local_folder_has_the_owners_name(online, tmp_path, tokenizer):
    with served(tokenizer.files()) as hub:
        online(hub.server_port)
        load_tokenizer("someone/tiny")
        (tmp_path / "work/someone").mkdir()
        count = len(hub.requests)
        assert load_tokenizer("someone/tiny").fingerprint == tokenizer.fingerprint
        assert len(hub.requests) == count
        assert error_message("someone/tony").endswith(
            "someone is empty; for a repository on the hub, use someone/tony@main"
        )
        error_message("someone/tony@main")
        assert len(hub.requests) > count


def test_only_the_first_matching_alternative_is_downloaded(online):
    with served({"config.json": b"{}", "b.bin": b"x", "c.bin": b"y"}) as hub:
        online(hub.server_port)
        folder = hub_files("someone/tiny", ["*.json"], either=["a*.bin", "b*.bin", "c*.bin"])
    assert sorted(file.name for file in folder.iterdir()) == ["b.bin", "config.json"]


def test_cached_files_are_used_if_a_download_fails(online, tmp_path, tokenizer):
    tokenizer.save(tmp_path / "cache/models--someone--tiny/snapshots" / COMMIT)
    with served(tokenizer.files() | {"added_tokens.json": None}) as hub:
        online(hub.server_port)
        assert load_tokenizer("someone/tiny").fingerprint == tokenizer.fingerprint
        message = error_message("someone/tiny", open_model)
    assert message.startswith("someone/tiny: its hub cache contains tokenizer.model; missing: config.json and ")
    assert "; the download from the hub failed (" in message and "403" in message


@pytest.mark.parametrize("load", [load_tokenizer, open_model])
def test_a_hub_that_does_not_respond_times_out(online, monkeypatch, load):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        online(silent.getsockname()[1])
        message = error_message("someone/tiny", load)
    assert message.startswith("someone/tiny: not found on this machine or in the hub cache; the hub is unreachable")
    assert "no response within 1 s" in message


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "the hub has no such repository, or it is private"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "the hub has no revision old"),
        (403, {"X-Error-Code": "GatedRepo"}, "the repository is gated; request access"),
        (503, {}, "the hub returned an error (Server error '503 Service Unavailable'"),
    ],
)
def test_errors_of_the_hub_are_distinguished_from_an_unreachable_hub(online, status, headers, words):
    with served(status=status, **headers) as hub:
        online(hub.server_port)
        message = error_message("someone/tiny@old")
    assert f"or in the hub cache; {words}" in message
    assert "\n" not in message and "unreachable" not in message


def test_a_similar_local_name_is_suggested_if_the_hub_has_no_such_repository(online, tmp_path):
    (tmp_path / "work/runs").mkdir()
    with served() as hub:
        online(hub.server_port)
        assert "not found on this machine (did you mean runs?)" in error_message("runz/tiny", open_model)


def test_the_hub_is_not_queried_in_offline_mode(online, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with served() as hub:
        online(hub.server_port)
        assert error_message("someone/tiny").endswith("the hub was not queried, since HF_HUB_OFFLINE is set")
    assert hub.requests == []
