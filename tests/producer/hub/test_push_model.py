"""`producer models push`: a fine-tuned model and its card in a repository of a server that stands in for the Hub."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.inputs.hub_configs import card_metadata
from common.models.registry import ModelRegistry
from tests.support.hub_repositories import Fault, HubRepositories, Repository
from tests.support.processes import DEMO_MODEL, Shell, environment

JOB = "0123456789ab"
CARD = """---
base_model: {base}
pipeline_tag: text-classification
library_name: transformers
tags: [hugqueue]
---
# model, fine-tuned for text-classification

* labels: bad, good

## Evaluation

| metric | value |
|---|---|
| accuracy | 0.95 |
"""


@pytest.fixture
def hub() -> Iterator[HubRepositories]:
    with HubRepositories() as found:
        yield found


@pytest.fixture
def user(hub: HubRepositories, tmp_path: Path) -> Shell:
    """`producer` of maria, whose registry has the model of one job, trained from org/base."""
    add_model(tmp_path / "models", JOB, "org/base")
    models = {"HUGQUEUE_MODELS_URL": str(tmp_path / "models")}
    return Shell(environment(tmp_path / "home") | hub.environ() | models, tmp_path)


def add_model(registry: Path, job: str, base: str) -> None:
    found = ModelRegistry(registry)
    directory = found.attempt_dir(job, "0-1-worker") / "model"
    directory.mkdir()
    for file in DEMO_MODEL.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    (directory / "README.md").write_text(CARD.format(base=Path(base).name if base.startswith("/") else base))
    (directory / "model.json").write_text(json.dumps({"model": f"job:{job}", "base_model": base}))
    found.add_model(job, "0-1-worker", directory)
    found.promote(job, "0-1-worker")


def test_a_model_is_uploaded_with_its_card(hub: HubRepositories, user: Shell, tmp_path: Path) -> None:
    hub.faults += [Fault("commit", 429, headers={"Retry-After": "0"}), Fault("commit", 503, after=True)]
    done = user.run("models", "push", f"job:{JOB}", "maria/classifier")
    assert done.stdout == f"{hub.url}/maria/classifier\n"
    repository = hub.models["maria/classifier"]
    assert repository.private
    user.run("models", "export", f"job:{JOB}", "mine")
    mine = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    assert {name: data for name, data in repository.head.files.items() if name != ".gitattributes"} == mine
    assert card_metadata(mine["README.md"].decode()) == {
        "base_model": "org/base",
        "pipeline_tag": "text-classification",
        "library_name": "transformers",
        "tags": ["hugqueue"],
    }
    assert [commit.message for commit in repository.commits][1:] == [f"Add the model of job {JOB}"]
    user.run("models", "push", JOB, "maria/classifier")
    assert len(repository.commits) == 2  # nothing had changed


def test_a_public_repository_is_asked_for(hub: HubRepositories, user: Shell) -> None:
    user.run("models", "push", JOB, "lab/classifier", "--public")
    assert not hub.models["lab/classifier"].private


def test_a_card_of_the_users_is_kept_and_one_of_ours_replaced(hub: HubRepositories, user: Shell) -> None:
    for name, text in (
        ("mine", "# Mine\n"),
        ("ours", CARD.format(base="org/old")),
        ("empty", "---\nlicense: mit\n---\n"),
    ):
        hub.models[f"maria/{name}"] = Repository()
        hub.models[f"maria/{name}"].add({"README.md": text.encode(), "notes.txt": b"x"})
        user.run("models", "push", JOB, f"maria/{name}")
    cards = {name: hub.models[f"maria/{name}"].head.files["README.md"].decode() for name in ("mine", "ours", "empty")}
    assert cards == {"mine": "# Mine\n", "ours": CARD.format(base="org/base"), "empty": "---\nlicense: mit\n---\n"}
    assert all(repository.head.files["notes.txt"] == b"x" for repository in hub.models.values())


def test_a_base_model_that_the_hub_does_not_have_is_not_linked(
    hub: HubRepositories, user: Shell, tmp_path: Path
) -> None:
    for number, base in enumerate(("/home/maria/base", "job:bbbbbbbbbbbb")):
        job = f"{number:012}"
        add_model(tmp_path / "models", job, base)
        user.run("models", "push", job, f"maria/m{number}")
        card = hub.models[f"maria/m{number}"].head.files["README.md"].decode()
        assert "base_model" not in card_metadata(card)
        assert card_metadata(card)["pipeline_tag"] == "text-classification"
        assert "| accuracy | 0.95 |" in card


@pytest.mark.parametrize(
    ("arguments", "token", "told"),
    [
        (("aaaaaaaaaaaa", "maria/m"), "hf_maria", "it is unknown, trained none, or is not finished"),
        (("job:nothing", "maria/m"), "hf_maria", "names no job: expected job: and twelve hexadecimal digits"),
        ((JOB, "m"), "hf_maria", "'m' names no repository on the Hub: expected ORG/NAME"),
        ((JOB, "maria/m"), None, "model maria/m: writing to the Hub needs a token"),
        ((JOB, "maria/m"), "hf_reader", "this token of maria may only read"),
        ((JOB, "org/there"), "hf_maria", "model org/there: this token must not write there"),
        ((JOB, "paul/m"), "hf_maria", "this token cannot create it"),
    ],
)
def test_what_cannot_be_pushed_is_refused(
    arguments: tuple[str, str], token: str | None, told: str, hub: HubRepositories, user: Shell
) -> None:
    hub.models["org/there"] = Repository()
    hub.models["org/there"].add({"config.json": b"{}"})
    user.environ.pop("HF_TOKEN")
    user.environ |= hub.environ(token)
    assert told in user.run("models", "push", *arguments, status=2).stderr
    assert list(hub.models) == ["org/there"]


def test_a_hub_that_must_not_be_used_is_said(hub: HubRepositories, user: Shell) -> None:
    user.environ["HF_HUB_OFFLINE"] = "1"
    told = user.run("models", "push", JOB, "maria/m", status=2).stderr
    assert "model maria/m: the Hub cannot be used, for HF_HUB_OFFLINE is set" in told
