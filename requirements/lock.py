"""Which exact versions go together? Writes requirements/cpu.txt and requirements/gpu.txt from the .in files.

    make lock        (needs the package index; a few minutes)

pip resolves each list without installing it; what left_out.txt names is dropped, what data.in names is appended.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
EXACT = {("gpu", "torch")}
"""Lists and names for which pip must not take a build with a local version: `torch==2.13.0` also means 2.13.0+cpu."""


def main() -> None:
    for kind in sys.argv[1:] or ["cpu", "gpu"]:
        versions = {name: version for name, version in resolve(HERE / f"{kind}.in").items() if keeps(name, kind)}
        lines = [f"# Written by requirements/lock.py from {kind}.in and data.in; installed with --no-deps."]
        lines += [
            f"{name}{'===' if (kind, name) in EXACT else '=='}{version}" for name, version in sorted(versions.items())
        ]
        lines += [line for line in (HERE / "data.in").read_text().splitlines() if not line.startswith("#")]
        (HERE / f"{kind}.txt").write_text("\n".join(lines) + "\n")
        print(f"{kind}: {len(versions)} distributions")


def resolve(requirements: Path) -> dict[str, str]:
    """Normalised name -> version of everything that the list needs."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", report.name, "-r", str(requirements)], check=True)
        installs = json.loads(Path(report.name).read_text())["install"]
    return {normalised(item["metadata"]["name"]): item["metadata"]["version"] for item in installs}


def keeps(name: str, kind: str) -> bool:
    """Whether the distribution belongs into the list of this kind."""
    if name == "pip":
        return False
    for line in (HERE / "left_out.txt").read_text().splitlines():
        left_out, _, reason = line.partition(":")
        if normalised(left_out) == name:
            return reason.endswith("(cpu)") and kind == "gpu"
    return True


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
