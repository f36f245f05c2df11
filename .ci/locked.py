"""Says, without a network, whether the requirements.txt files still agree with pyproject.toml; see `make lock`."""

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = {
    "requirements.txt": (),
    "tests/system/requirements.txt": ("client", "system"),
    "tests/requirements.txt": ("client", "system", "test"),
    ".ci/audit/requirements.txt": ("audit",),
}
# One pinned package: `name==version ; marker \`, its hashes, and the comment that says who asked for it.
PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)(?P<rest>.*(?:\n .*)*)", re.MULTILINE)


def problems(root: Path) -> list[str]:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    found = []
    versions: dict[str, str] = {}
    for lock, extras in LOCKS.items():
        lines = [*project["dependencies"], *(line for e in extras for line in project["optional-dependencies"][e])]
        wanted = {canonicalize_name(r.name): r for r in map(Requirement, lines)}
        pins = {canonicalize_name(m["name"]): m for m in PIN.finditer((root / lock).read_text())}
        for name, requirement in wanted.items():
            if name not in pins:
                found.append(f"{lock}: {name} is not pinned")
            elif pins[name]["version"] not in requirement.specifier:
                found.append(f"{lock}: {name} {pins[name]['version']} is not {requirement.specifier}")
        for name, pin in pins.items():
            if "(pyproject.toml)" in pin["rest"] and name not in wanted:
                found.append(f"{lock}: pyproject.toml no longer asks for {name}")
            if versions.setdefault(name, pin["version"]) != pin["version"]:
                found.append(f"{lock}: {name} {pin['version']} here, {versions[name]} elsewhere")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(problems(Path(__file__).parent.parent)) or None)
