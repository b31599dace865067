"""Every YAML that is shipped loads and passes preflight; the README's commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from envs.check import check_environment
from rl.config.chain import load_chain
from rl.config.read import load_config
from rl.config.stages import load_stage
from rl.preflight import preflight

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL = sorted((ROOT / "experiments").rglob("*.yaml"))
CHAINS = [path for path in ALL if "chain" in path.stem]
YAMLS = [path for path in ALL if path.name != "stage.yaml" and path not in CHAINS]


@pytest.mark.slow
@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_experiment_loads_is_short_and_can_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(path)
    assert len(path.read_text().splitlines()) <= 40
    if config.policy.path is not None:  # a pretrained checkpoint that a command of the experiment's README makes
        monkeypatch.setattr("rl.config.checkpoint_defaults.PRETRAINED_WEIGHTS", 0)
        (tmp_path / "config.json").write_text("{}")
        config = load_config(path, [f"policy.path={tmp_path}"])
    preflight(config)


@pytest.mark.parametrize("path", CHAINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_stages_of_a_chain_can_be_read(path: Path) -> None:
    for stage in load_chain(path)[1]:
        if stage.yaml is not None:
            (load_config if stage.command == "rl train" else load_stage)(stage.yaml, stage.overrides())


def test_the_quickstart_is_25_lines_at_most() -> None:
    assert len((ROOT / "experiments" / "quickstart.yaml").read_text().splitlines()) <= 25


def test_the_quickstart_fits_a_cluster_of_two_cpus() -> None:
    """Such as `ray start --head` makes on a small machine."""
    assert load_config(ROOT / "experiments" / "quickstart.yaml").reserved == (2.0, 0.0)


@pytest.mark.slow
def test_every_command_that_the_documents_name_exists() -> None:
    texts = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    assert len(texts[0].splitlines()) < 150
    commands = {found for text in texts for found in re.findall(r"python -m (rl|sft|envs) ([a-z0-9][a-z0-9-]*)", text)}
    assert {("rl", "train"), ("rl", "evaluate"), ("sft", "train")} <= commands
    for package, command in commands:
        done = subprocess.run(
            [sys.executable, "-m", package, command, "--help"], cwd=ROOT, capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, (package, command)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_yaml_of_the_documents_can_be_read(document: Path, tmp_path: Path) -> None:
    """What an experiment needs besides is added; environments and checkpoints need not be there."""
    needed = ("run_dir: x", "seed: 0", "policy: {path: x}", "environments: {a: {}}", "train: {num_steps: 1}")
    for text in re.findall(r"```yaml\n(.*?)```", document.read_text(), re.DOTALL):
        path = tmp_path / "experiment.yaml"
        if re.search("^stages:", text, re.MULTILINE):
            path.write_text(text)
            load_chain(path)
            continue
        added = [line for line in needed if not re.search(f"^{line.split(':')[0]}:", text, re.MULTILINE)]
        path.write_text("\n".join([*added, text]))
        load_config(path)


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "envs/README.md", "docs/own_reward.md", "docs/tools.md"])
def test_the_documents_environments_keep_the_contract(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert examples
    for number, code in enumerate(examples):
        module = f"example_{document.replace('/', '_').removesuffix('.md')}_{number}"
        (tmp_path / f"{module}.py").write_text(code)
        name = re.findall(r"^(?:class|def) (\w+)", code, re.MULTILINE)[0]
        results = check_environment(f"{module}:{name}", num_seeds=6)
        assert [f"{result.name}: {result.detail}" for result in results if result.status == "failed"] == []


@pytest.mark.parametrize("target", ["demo", "test", "check", "docs", "lock"])
def test_make_knows_the_targets_that_the_documents_name(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0
