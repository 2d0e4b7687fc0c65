"""The way of a Hub id, against a stand-in hub: size and progress, pinning, cache, offline, missing, gated, faults."""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import transformers.models
from transformers import PreTrainedTokenizerBase

from tests.support.hub_server import HubServer
from tests.support.processes import ROOT, environment, free_port
from workers.models.hub_download import _FILES

FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": bytes(200_000),
    "tokenizer.json": b"{}" * 5000,
    "vocab.txt": b"a\nb\n",
    "1_Pooling/config.json": b"{}",
    "bpe.codes": b"a b\n",
    "prophetnet.tokenizer": b"a\n",
    "consolidated.safetensors": bytes(200_000),
    "consolidated.00.pth": bytes(200_000),
    "pytorch_model.bin": bytes(300_000),
    "onnx/model.json": bytes(50_000),
    "modeling.py": b"raise SystemExit",
    "README.md": b"words",
}
#: Of FILES, what a text model is made of.
WANTED = {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "1_Pooling/config.json"}
WANTED |= {"bpe.codes", "prophetnet.tokenizer"}

_SCRIPT = """
import json, sys
from common.errors import CodedError
from common.reporting import Reporter
from workers.models.resolver import ModelPolicy, resolve
stages = []
class Stages(Reporter):
    def stage(self, text):
        stages.append(text)
try:
    found = resolve(sys.argv[1], sys.argv[2] or None, "fill-mask", ModelPolicy(), Stages())
    answer = {"path": str(found.path), "commit": found.commit, "source": found.source, "adapter": str(found.adapter)}
except CodedError as error:
    answer = {"error": type(error).__name__, "code": error.code, "message": error.message}
print(json.dumps({**answer, "stages": stages}))
"""


@dataclass
class Client:
    """A process with a cache of its own that resolves one model at a time."""

    home: Path
    endpoint: str

    def resolve(self, model: str, revision: str = "", **env: str) -> dict[str, Any]:
        more = {"HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | env
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, model, revision],
            env=environment(self.home, **more),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def hf(self, command: str) -> None:
        """Run a command line of the Hub's own program."""
        env = environment(self.home, HF_ENDPOINT=self.endpoint, HF_HUB_OFFLINE="0")
        program = Path(sys.executable).with_name("hf")
        subprocess.run([program, *command.split()[1:]], env=env, check=True, capture_output=True, timeout=60)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    return Client(tmp_path, hub.url)


def test_a_download_says_its_exact_size_first_then_its_progress_to_the_end(hub: HubServer, client: Client):
    hub.add("owner/model", FILES)
    found = client.resolve("owner/model")
    size = sum(len(FILES[name]) for name in WANTED)
    assert found["stages"][0] == f"downloading owner/model ({size / 1000:.0f} kB)"
    percents = [int(text.rpartition(": ")[2].removesuffix(" %")) for text in found["stages"][1:]]
    assert percents == sorted(set(percents))
    assert percents[-1] == 100


def test_only_the_files_of_a_text_model_are_fetched(hub: HubServer, client: Client):
    hub.add("owner/model", FILES)
    path = Path(client.resolve("owner/model")["path"])
    assert {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} == WANTED


def test_the_files_of_every_tokenizer_of_transformers_are_fetched():
    names: dict[str, str] = {}
    for module in pkgutil.walk_packages(transformers.models.__path__, "transformers.models."):
        if ".tokenization_" not in module.name:
            continue
        try:
            found = importlib.import_module(module.name)
        except (ImportError, NameError):  # a tokenizer whose own library is not installed
            continue
        for kind in vars(found).values():
            if isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase):
                names |= {name: kind.__name__ for name in kind.vocab_files_names.values() if isinstance(name, str)}
    assert len(names) > 20
    assert {name: kind for name, kind in names.items() if not any(fnmatchcase(name, each) for each in _FILES)} == {}


def test_an_unreadable_cache_is_reported_at_once(hub: HubServer, client: Client):
    hub.add("owner/model", FILES)
    client.resolve("owner/model")
    branch = client.home / "hf" / "hub" / "models--owner--model" / "refs" / "main"
    branch.unlink()
    branch.mkdir()
    for offline in ("0", "1"):
        found = client.resolve("owner/model", HF_HUB_OFFLINE=offline)
        assert (found["error"], found["code"]) == ("ModelError", "model_unreadable")
        assert str(branch) in found["message"]


def test_an_unwritable_cache_is_reported_at_once(hub: HubServer, client: Client):
    hub.add("owner/model", FILES)
    (client.home / "hf").write_text("a file in the place of the directory")
    found = client.resolve("owner/model")
    assert (found["error"], found["code"]) == ("ModelError", "model_unreadable")
    assert "HF_HOME" in found["message"]
    assert not any("trying again" in stage for stage in found["stages"])


def test_a_revision_is_pinned_to_its_commit(hub: HubServer, client: Client):
    old = hub.add("owner/model", FILES, "v1")
    new = hub.add("owner/model", {**FILES, "config.json": b'{"model_type": "new"}'})
    found = client.resolve("owner/model", "v1")
    assert found["commit"] == old != new
    assert (Path(found["path"]) / "config.json").read_bytes() == FILES["config.json"]
    assert client.resolve("owner/model", new)["commit"] == new


def test_a_cached_model_is_used_without_asking_the_hub(hub: HubServer, client: Client):
    commit = hub.add("owner/model", FILES)
    assert client.resolve("owner/model")["source"] == "hub"
    hub.requests.clear()
    again = client.resolve("owner/model")
    assert (again["source"], again["commit"], again["stages"]) == ("cache", commit, [])
    assert hub.requests == []


def test_a_cached_model_is_used_offline(hub: HubServer, client: Client):
    hub.add("owner/model", FILES, "v1")
    client.resolve("owner/model", "v1")
    assert client.resolve("owner/model", "v1", HF_HUB_OFFLINE="1")["source"] == "cache"


def test_a_cache_that_another_program_filled_by_half_is_completed(hub: HubServer, client: Client):
    hub.add("owner/model", FILES)
    fetch = "from huggingface_hub import hf_hub_download as get; get('owner/model', 'config.json')"
    env = environment(client.home, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    subprocess.run([sys.executable, "-c", fetch], env=env, check=True, timeout=60)
    found = client.resolve("owner/model")
    assert found["source"] == "hub"
    assert (Path(found["path"]) / "model.safetensors").stat().st_size == 200_000


def test_offline_without_a_cached_copy_says_where_to_put_it(client: Client):
    found = client.resolve("owner/model", HF_HUB_OFFLINE="1")
    assert (found["error"], found["code"]) == ("ModelError", "model_offline")
    for word in ("owner/model", "HF_HUB_OFFLINE", str(client.home / "hf" / "hub"), "hf download owner/model"):
        assert word in found["message"]


@pytest.mark.parametrize("length", [0, 7, 40])
def test_the_advice_for_a_machine_without_network_is_enough(hub: HubServer, client: Client, length: int):
    commit = hub.add("owner/model", FILES)
    hub.repositories["owner/model"].revisions[commit[:7]] = commit
    revision = commit[:length]
    [advice] = re.findall(
        r"\((hf download .*?)\)", client.resolve("owner/model", revision, HF_HUB_OFFLINE="1")["message"]
    )
    if revision:  # the branch has moved on
        hub.add("owner/model", {**FILES, "config.json": b'{"model_type": "new"}'})
    client.hf(advice)
    found = client.resolve("owner/model", revision, HF_HUB_OFFLINE="1")
    assert (found["source"], found["commit"]) == ("cache", commit)


def test_an_abbreviated_commit_is_found_in_a_cache_of_whole_ones(hub: HubServer, client: Client):
    commit = hub.add("owner/model", FILES)
    client.hf("hf download owner/model")
    assert client.resolve("owner/model", commit[:7], HF_HUB_OFFLINE="1")["commit"] == commit
    other = ("0" if commit[0] != "0" else "1") * 7
    assert client.resolve("owner/model", other, HF_HUB_OFFLINE="1")["code"] == "model_offline"


def test_without_network_the_error_names_the_address_that_was_tried(client: Client):
    nowhere = f"http://127.0.0.1:{free_port()}"
    found = client.resolve("owner/model", HF_ENDPOINT=nowhere)
    assert (found["error"], found["code"]) == ("ModelError", "model_offline")
    assert nowhere in found["message"]


def test_a_missing_repository_is_an_error_of_the_model(client: Client):
    found = client.resolve("owner/nothing")
    assert (found["error"], found["code"]) == ("ModelError", "model_not_found")
    assert "owner/nothing" in found["message"]


def test_a_missing_revision_is_named(hub: HubServer, client: Client):
    hub.add("owner/model", FILES)
    found = client.resolve("owner/model", "v9")
    assert (found["code"], "'v9'" in found["message"]) == ("model_not_found", True)


def test_a_gated_model_says_that_it_wants_a_token(hub: HubServer, client: Client):
    hub.add("owner/gated", FILES, gated=True)
    found = client.resolve("owner/gated")
    assert (found["error"], found["code"]) == ("ModelError", "model_gated")
    assert "HF_TOKEN" in found["message"]


def test_what_may_not_be_opened_is_not_downloaded(hub: HubServer, client: Client):
    hub.add("owner/bad", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    found = client.resolve("owner/bad")
    assert (found["error"], found["code"]) == ("ModelError", "unsafe_weights")
    assert not any("resolve" in request for request in hub.requests)


def test_an_adapter_brings_its_base(hub: HubServer, client: Client):
    hub.add("owner/model", FILES)
    config = {"peft_type": "LORA", "base_model_name_or_path": "owner/model"}
    hub.add("owner/adapter", {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": b"x"})
    found = client.resolve("owner/adapter")
    assert {path.name for path in Path(found["adapter"]).iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip
    assert (Path(found["path"]) / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert found["commit"] == Path(found["adapter"]).name


def test_a_passing_fault_of_the_hub_is_tried_again(hub: HubServer, client: Client):
    hub.add("owner/model", FILES)
    hub.failures = 2
    found = client.resolve("owner/model")
    assert found["source"] == "hub"
    assert any("trying again" in stage for stage in found["stages"])


def test_a_lasting_fault_of_the_hub_is_the_workers_not_the_models(hub: HubServer, client: Client):
    hub.add("owner/model", FILES)
    hub.failures = 1_000
    found = client.resolve("owner/model")
    assert (found["error"], found["code"]) == ("WorkerError", "hub_unavailable")
    assert "503" in found["message"]


def test_a_file_that_breaks_off_is_fetched_to_its_end(hub: HubServer, client: Client):
    weights = bytes(range(256)) * 1000
    hub.add("owner/model", {**FILES, "model.safetensors": weights})
    hub.break_off = 1
    found = client.resolve("owner/model")
    assert (Path(found["path"]) / "model.safetensors").read_bytes() == weights
