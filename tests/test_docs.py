"""The documents are true: links lead somewhere, every key is listed, commands on experiments can be read."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rl.config.chain import load_chain
from rl.config.keys_page import keys_page
from rl.config.read import load_config
from rl.config.stages import load_stage

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    path
    for path in ROOT.rglob("*.md")
    if path.relative_to(ROOT).parts[0] in ("docs", "envs", "sft", "experiments", "benchmarks") or path.parent == ROOT
]
COMMAND = re.compile(
    r"^ +python -m (rl train|rl chain|rl evaluate|sft train|sft show) (experiments/\S+\.yaml)(.*)$", re.MULTILINE
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)(?:#([^)\s]+))?\)", document.read_text()):
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"{target} in {name_of(document)}"
        assert not anchor or anchor in anchors(path), f"{target}#{anchor} in {name_of(document)}"


def anchors(path: Path) -> set[str]:
    """The names of the headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_page_of_the_keys_is_what_the_command_writes() -> None:
    written = (ROOT / "docs" / "keys.md").read_text()
    assert written == keys_page(), "write it anew: python -m rl explain --markdown > docs/keys.md"
    assert "| `learning_rate` | number, more than 0 | `0.003`; 2e-05 for a pretrained checkpoint" in written
    assert "| `group_size` | whole number, at least 2 | `8` | G: rollouts per group. |" in written
    assert "(only nvfp4) |" in written


def test_the_tests_against_failures_of_others_exist() -> None:
    page = (ROOT / "docs" / "protected.md").read_text()
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == list(range(1, 28))
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    for file, name in named:
        assert re.search(rf"def {name}\(", (ROOT / "tests" / file).read_text()), f"{file}::{name}"
    assert len(named) >= 27


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_command_on_an_experiment_can_be_read(document: Path) -> None:
    for command, yaml, rest in COMMAND.findall(document.read_text()):
        overrides = [word for word in shlex.split(rest, comments=True) if re.match(r"[\w.*/:-]+=", word)]
        overrides = [word for word in overrides if not word.startswith("--") and "=S" not in word]
        readers = {"rl chain": load_chain, "sft train": load_stage, "sft show": load_stage}
        readers.get(command, load_config)(ROOT / yaml, overrides)


@pytest.mark.parametrize("file", ["phone_book.py", "train.yaml"])
def test_the_guide_to_tools_shows_the_files_of_its_experiment(file: str) -> None:
    shown = re.findall(r"```\w+\n(.*?)```", (ROOT / "docs" / "tools.md").read_text(), re.DOTALL)
    assert (ROOT / "experiments" / "own_tools" / file).read_text() in shown


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("myst_parser", reason="make docs installs it")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--conf-dir", "docs", ".", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Configuration keys" in (tmp_path / "docs" / "index.html").read_text()
