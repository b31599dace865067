"""A model of the hub is downloaded once, without weights in other formats; the server here speaks as the hub does."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from rl.__main__ import main
from rl.config.hub import cached_snapshot, config_snapshot, downloaded_snapshot
from rl.config.read import load_config
from rl.plan.show import show_plan
from tests.published_models import PUBLISHED

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "model.gguf": b"the same weights"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Paths that were asked of a hub with one model, someone/model."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            name = self.path.partition("?")[0].rpartition("/")[2]
            if self.path.startswith("/api/models/someone/model/"):
                siblings = [{"rfilename": file} for file in FILES]
                body = json.dumps({"id": "someone/model", "sha": COMMIT, "siblings": siblings}).encode()
                if "/tree/" in self.path:
                    body = json.dumps(
                        [{"type": "file", "path": file, "size": len(data), "oid": "0"} for file, data in FILES.items()]
                    ).encode()
                self.answer(200, body)
            elif self.path.startswith("/someone/model/resolve/") and name in FILES:
                self.answer(200, FILES[name])
            else:
                self.answer(404, b"")

        do_HEAD = do_GET

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hash(body):x}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    yield asked
    server.shutdown()
    server.server_close()


def test_a_model_is_downloaded_once_and_without_other_formats(
    hub: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cached_snapshot("someone/model") is None
    yaml = tmp_path / "experiment.yaml"
    yaml.write_text(
        "{run_dir: runs/x, seed: 0, policy: {path: someone/model}, environments: {math/Arithmetic-v0: {}},"
        " train: {num_steps: 1}}"
    )
    assert load_config(yaml).policy.path == Path("someone/model") and not hub  # only `rl train` downloads
    folder = load_config(yaml, fetch=downloaded_snapshot).policy.path
    assert folder is not None and folder.name == COMMIT
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert "downloading someone/model" in capsys.readouterr().out
    asked = [path for path in hub if "/resolve/" in path]
    assert load_config(yaml, fetch=downloaded_snapshot).policy.path == folder
    assert [path for path in hub if "/resolve/" in path] == asked  # now it is in the cache


def test_an_interrupted_download_is_gone_on_with(hub: list[str]) -> None:
    folder = downloaded_snapshot("someone/model")
    assert folder is not None and cached_snapshot("someone/model") == folder
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    assert cached_snapshot("someone/model") is None
    index.unlink()
    (folder / "model.safetensors").unlink()
    assert cached_snapshot("someone/model") is None
    assert downloaded_snapshot("someone/model") == folder == cached_snapshot("someone/model")


def test_a_plan_downloads_config_json_alone(hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PUBLISHED["Qwen3-0.6B"]().save_pretrained(tmp_path)
    monkeypatch.setitem(FILES, "config.json", (tmp_path / "config.json").read_bytes())
    yaml = tmp_path / "experiment.yaml"
    gpus = "learner: {gpus: 0.5}, rollout: {gpus_per_worker: 0.5, gpu_memory_share: 0.4}"
    yaml.write_text(
        "{run_dir: runs/x, seed: 0, policy: {path: someone/model}, environments: {math/Arithmetic-v0: {}},"
        f" train: {{num_steps: 1}}, {gpus}}}"
    )
    config = load_config(yaml, fetch=config_snapshot)
    folder = config.policy.path
    assert folder is not None and [file.name for file in folder.iterdir()] == ["config.json"]
    assert {path.rpartition("/")[2] for path in hub if "/resolve/" in path} == {"config.json"}
    assert config.policy.max_tokens == 2048  # the defaults of a pretrained checkpoint
    assert show_plan(config, "h100-80gb", Console(quiet=True))
    asked = list(hub)
    assert load_config(yaml, fetch=config_snapshot) == config and hub == asked  # now it is in the cache
    assert cached_snapshot("someone/model") is None  # so that a run downloads the rest
    whole = load_config(yaml, fetch=downloaded_snapshot).policy.path
    assert whole is not None and (whole / "model.safetensors").is_file()


def test_a_plan_names_the_command_where_no_hub_is(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = tmp_path / "experiment.yaml"
    yaml.write_text(
        "{run_dir: runs/x, seed: 0, policy: {path: someone/else}, environments: {math/Arithmetic-v0: {}},"
        " train: {num_steps: 1}}"
    )
    monkeypatch.setattr(sys, "argv", ["rl", "plan", str(yaml)])
    assert main() == 2
    told = capsys.readouterr()
    assert "config.json of someone/else cannot be downloaded: " in told.out
    assert "download it with: hf download someone/else config.json; or" in told.err


def test_what_cannot_be_downloaded_is_told(hub: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert downloaded_snapshot("someone/else") is None
    assert "someone/else cannot be downloaded: " in capsys.readouterr().out
