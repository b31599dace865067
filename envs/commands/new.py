"""`python -m envs new`: an installable package with an environment that already passes every check."""

import re
from pathlib import Path
from string import Template

from envs.commands.output import write_text
from envs.commands.templates import ENVIRONMENTS, PYPROJECT, README, TESTS
from envs.errors import InputError

NAME = re.compile(r"[A-Z][A-Za-z0-9]*")


class NewEnvironmentError(InputError):
    """No package can be written for this name, kind or folder."""


def write_package(name: str, kind: str, folder: Path) -> str:
    """Write the package below `folder` and return what to do next. Raises `NewEnvironmentError`, `OutputError`."""
    if not NAME.fullmatch(name):
        raise NewEnvironmentError(
            f"a name is letters and digits and begins with a capital, such as WordCount: {name!r}"
        )
    if kind not in ENVIRONMENTS:
        raise NewEnvironmentError(f"kind must be one of {', '.join(ENVIRONMENTS)}, got {kind!r}")
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    package = folder / f"polygym-{module.replace('_', '-')}"
    if package.exists():
        raise NewEnvironmentError(f"{package} exists already; choose another name or another --out")
    target = module if kind == "function" else name
    values = {"name": name, "module": module, "package": package.name, "target": target, "env_id": f"my/{name}-v0"}
    files = {
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        f"{module}.py": ENVIRONMENTS[kind],
        f"tests/test_{module}.py": TESTS,
    }
    for path, text in files.items():
        write_text(package / path, Template(text).substitute(values))
    return (
        f"wrote {package}; next:\n  pip install --no-deps --no-build-isolation -e {package}\n"
        f"  python -m envs check {values['env_id']}\n  python -m envs play {values['env_id']}"
    )
