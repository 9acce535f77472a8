"""Name what pyproject.toml asks for, the extra EXTRA included, and this Python lacks: missing.py EXTRA."""

import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def missing(lines: list[str]) -> Iterator[str]:
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            for extra in requirement.extras:
                yield from missing(PROJECT["optional-dependencies"][extra])
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield str(requirement)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement} (there is {version})"


if __name__ == "__main__":
    extra = sys.argv[1]
    lacking = list(dict.fromkeys(missing([*PROJECT["dependencies"], f"{PROJECT['name']}[{extra}]"])))
    if lacking:
        sys.exit(f"Missing in .venv: {', '.join(lacking)}; ./scripts/{extra} installs that.")
