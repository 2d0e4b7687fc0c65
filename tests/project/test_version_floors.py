"""No version with a known hole is asked for: the floors that docs/security.md names hold where versions are chosen."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.processes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SECURITY = (ROOT / "docs" / "security.md").read_text("utf-8")


@pytest.mark.parametrize(("library", "last_bad"), [("torch", "2.9.1"), ("transformers", "5.4.99")])
def test_a_library_with_a_known_hole_is_not_installed(library: str, last_bad: str):
    wanted = {r.name: r for r in map(Requirement, PROJECT["optional-dependencies"]["worker"])}
    assert Version(last_bad) not in wanted[library].specifier
    floor = next(spec.version for spec in wanted[library].specifier if spec.operator == ">=")
    [safe] = re.findall(rf"{library} before ([\d.]+)\s", SECURITY)
    assert Version(last_bad) < Version(safe) <= Version(floor)


def test_what_is_pinned_is_not_below_the_floors():
    wanted = {r.name: r for r in map(Requirement, PROJECT["optional-dependencies"]["worker"])}
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", "\n".join(lines), re.MULTILINE))
    for library in ("torch", "transformers"):
        assert Version(pinned[library]) in wanted[library].specifier


def test_redis_in_the_compose_file_is_one_of_the_patched():
    [found] = re.findall(r"image: redis:(\d+)\.(\d+)\.(\d+)", (ROOT / "docker-compose.yml").read_text("utf-8"))
    major, minor, patch = map(int, found)
    patched = re.findall(r"\b(\d+)\.(\d+)\.(\d+)(?=[,\s]| and| or)", SECURITY[SECURITY.index("patch releases") :])
    floors = {(int(a), int(b)): int(c) for a, b, c in patched[:5]}
    assert len(floors) == 5
    assert patch >= floors[major, minor]
