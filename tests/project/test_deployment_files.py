"""What docker-compose.yml, .env.example and the Dockerfile promise each other, looked up without an engine."""

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from common.settings import Settings
from producer.cli.all_in_one import FLOWER_COLUMNS

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text("utf-8")
EXAMPLE = (ROOT / ".env.example").read_text("utf-8")
#: What the compose file decides by itself, or what has no meaning in a container.
DECIDED = {
    "CELERY_BROKER_URL, else REDIS_URL",
    "HUGQUEUE_ANY_PATH",
    "HUGQUEUE_DEVICE",
    "HUGQUEUE_HOME",
    "HUGQUEUE_MODEL_ROOTS",
    "HUGQUEUE_SUPERVISED",
    "HUGQUEUE_TRAIN",
}


def read_by_compose() -> set[str]:
    """Return every variable that decides something in the compose file."""
    substituted = re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE)
    handed_on = re.findall(r"^ +([A-Z][A-Z_]+):$", COMPOSE, re.MULTILINE)
    return {*substituted, *handed_on}


def test_every_variable_of_the_compose_file_is_in_the_example() -> None:
    assert read_by_compose() == set(re.findall(r"^#?([A-Z][A-Z_]+)=", EXAMPLE, re.MULTILINE))


def test_every_setting_reaches_the_containers() -> None:
    settings = {setting.metadata["env"] for setting in fields(Settings)}
    assert settings - DECIDED - read_by_compose() == set()


def test_whatever_submits_or_runs_jobs_can_be_traced() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    traced = {name for name, service in services.items() if "OTEL_EXPORTER_OTLP_ENDPOINT" in service["environment"]}
    assert traced == {"worker-cpu", "worker-gpu", "worker-train", "producer", "control"}


@pytest.mark.parametrize("secret", ["REDIS_PASSWORD", "FLOWER_BASIC_AUTH"])
def test_a_password_has_no_default(secret: str) -> None:
    assert re.search(rf"\$\{{{secret}:\?", COMPOSE)
    assert not re.search(rf"\$\{{{secret}:?-", COMPOSE)
    assert re.search(rf"^{secret}=$", EXAMPLE, re.MULTILINE)


def test_every_port_is_published_on_loopback_only() -> None:
    published = re.findall(r"ports:\n((?: +- .*\n)+)", COMPOSE)
    ports = [line.strip(" -") for block in published for line in block.splitlines()]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_image_is_pinned_by_a_version() -> None:
    """Those built here have no tag, as `docker compose build` builds them again."""
    pulled = [name for name in re.findall(r"^ +image: (\S+)$", COMPOSE, re.MULTILINE) if ":" in name]
    assert pulled
    assert all(re.search(r":v?\d+\.\d+\.\d+", name) for name in pulled)


def test_what_the_dockerfile_copies_reaches_the_build() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    copied = {
        source.rstrip("/")
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
        for source in sources.split()
    }
    kept = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE))
    assert copied == kept


def test_every_role_has_the_libraries_that_its_settings_ask_for(tmp_path: Path) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    [script] = re.findall(r"^RUN (for role in .*?done)$", dockerfile, re.MULTILINE | re.DOTALL)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run(["sh", "-c", script.replace("\\\n", "")], cwd=tmp_path, check=True, timeout=30)
    wanted = {
        "producer": {"numpy", "s3fs", "huggingface-hub"},
        "worker": {"numpy", "s3fs", "torch", "Pillow", "soundfile"},
        "flower": {"flower"},
    }
    for role, libraries in wanted.items():
        lines = (tmp_path / f"{role}.txt").read_text().splitlines()
        assert libraries <= {Requirement(line).name for line in lines}, role
        assert f"/requirements/{role}.txt" in dockerfile
    assert "torch" not in (tmp_path / "producer.txt").read_text()


def test_the_home_of_the_user_is_a_volume_of_what_reads_addresses() -> None:
    [home] = re.findall(r"useradd .*--home-dir (\S+)", (ROOT / "Dockerfile").read_text("utf-8"))
    services = yaml.safe_load(COMPOSE)["services"]
    for name, service in services.items():
        if "HUGQUEUE_STORE_URL" in service["environment"]:
            assert f"model-cache:{home}" in service["volumes"], name
            assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"} <= service["environment"].keys()


@pytest.mark.parametrize("file", ["README.md", "Dockerfile"])
def test_flower_shows_the_same_columns_however_it_is_started(file: str) -> None:
    assert f"--tasks_columns={FLOWER_COLUMNS}" in (ROOT / file).read_text()
