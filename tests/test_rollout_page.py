"""The page that shows saved rollouts, in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.commands.view import page, write_page
from envs.messages import Message
from envs.rollout_file import array_object, message_object
from tests.makers import make_reply
from tests.saved import saved, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def dom(path: Path, fragment: str = "") -> str:
    """The page as a real browser has it after its script has run."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([*command, f"file://{path}{fragment}"], capture_output=True, text=True, timeout=120)
    return done.stdout


def turn(*tokens: tuple[int, float, bool]) -> dict[str, Any]:
    ids, logprobs, forced = zip(*tokens, strict=True)
    reply = make_reply(ids, forced={place for place, is_forced in enumerate(forced) if is_forced})
    arrays = {"ids": reply.ids, "sampled": reply.sampled, "logprob": np.array(logprobs, np.float32)}
    return {"reply": {name: array_object(array) for name, array in arrays.items()}}


@pytest.fixture
def viewed(tmp_path: Path) -> Path:
    hostile = message_object(Message("assistant", "</script><script>document.title='hacked'</script><b>x</b> needle"))
    rollouts = [
        saved("math/Arithmetic-v0", 0, turns=[turn((0, -0.1, False), (1, -4.0, False), (2, 0.0, True))]),
        saved("tools/Store-v0", 1, reward=0.25, outcome="truncated"),
        saved("tools/Store-v0", 2, reward=None, outcome="env_error", error="it broke"),
    ]
    rollouts[1]["messages"].append(hostile)
    (tmp_path / "rollouts").mkdir()
    write(tmp_path / "rollouts" / "train_000001.jsonl", rollouts)
    (tmp_path / "tokens.json").write_text(json.dumps(["<good>", "odd", "forced"]))
    write_page(tmp_path, tmp_path / "page.html")
    return tmp_path / "page.html"


def entries(html: str) -> list[str]:
    return re.findall(r"<button[^>]*>([^<]*)", html)


def test_the_page_shows_rollouts_and_their_tokens_in_a_browser(viewed: Path) -> None:
    html = dom(viewed)
    assert entries(html) == ["math/Arithmetic-v0  1.000", "tools/Store-v0  0.250", "tools/Store-v0  none"]
    spans = re.findall(r'<span(?: class="(\w+)")? title="([^"]*)"(?: style="[^"]*")?>([^<]*)</span>', html)
    assert spans == [
        ("", "logprob -0.1", "&lt;good&gt;"),
        ("", "logprob -4", "odd"),
        ("forced", "forced by the budget, not trained", "forced"),
    ]


@pytest.mark.parametrize(
    ("fragment", "shown"),
    [
        ("#env=tools/Store-v0", 2),
        ("#outcome=truncated", 1),
        ("#low=0.5", 1),
        ("#high=0.5", 1),
        ("#search=NEEDLE", 1),
        ("#search=nowhere", 0),
        ("#env=tools/Store-v0&outcome=ok", 0),
    ],
)
def test_the_page_filters_and_searches_in_a_browser(viewed: Path, fragment: str, shown: int) -> None:
    html = dom(viewed, fragment)
    assert len(entries(html)) == shown
    assert f"{shown} of 3" in html


def test_what_a_policy_wrote_stays_text_in_a_browser(viewed: Path) -> None:
    html = dom(viewed, "#outcome=truncated")
    assert "hacked" not in re.findall(r"<title>(.*?)</title>", html)[0]
    assert "&lt;/script&gt;&lt;script&gt;" in html
    assert "it broke" in dom(viewed, "#outcome=env_error")


def test_the_page_fetches_nothing_and_is_cut_to_the_newest(tmp_path: Path) -> None:
    text = page([saved("math/Arithmetic-v0", 0)], "a <title>")
    assert "http" not in text.replace("http-equiv", "")
    assert "<title>rollouts: a &lt;title&gt;</title>" in text
    file = write(tmp_path / "many.jsonl", [saved("math/Arithmetic-v0", seed) for seed in range(5)])
    assert "2 rollouts, the newest of 5" in write_page(file, tmp_path / "page.html", limit=2)
