"""What every part of the tree must keep to: one-way imports, small files, light start, one place for each thing."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

PACKAGES = ("common", "hugqueue", "producer", "workers")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

#: package -> what it must not import
FORBIDDEN = {
    "common": {"producer", "workers", "torch", "transformers", "datasets", "click", "rich"},
    "producer": {"workers", "torch", "transformers", "datasets", "accelerate"},
    "workers": {"producer"},
    "hugqueue": {"workers", "torch", "transformers", "datasets"},
}
FORBIDDEN_NAMES = re.compile(r"utils?|helpers?|managers?|services?", re.I)


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        tops = {name.partition(".")[0] for name in imports(path)}
        assert not tops & FORBIDDEN[package], path


#: All of inference but its core, which loads no torch when it is imported.
INFERENCE = {f"workers.inference.{name}" for name in ("embedding", "generation", "loading", "tasks", "text")}
#: folder -> what its modules must not import, beside what their package must not
FOLDERS = {
    "common/redis": {"celery", "kombu"},
    "producer/submit": {"click", "rich", "producer.cli"},
    "producer/finetune": {"click", "rich", "producer.cli"},
    "producer/hub": {"click", "rich", "producer.cli", "producer.submit"},
    "producer/outputs": {"click", "rich", "producer.cli", "producer.submit"},
    "producer/openai": {"click", "rich", "producer.cli"},
    "producer/embedded": {"click", "rich", "producer.cli", "producer.submit"},
    "workers/celery_worker": {"torch", "transformers", "workers.device.server", *INFERENCE},
    "workers/device/client": {"celery", "torch", "transformers", "workers.device.server", *INFERENCE},
    "workers/device/server": {"celery", "kombu", "redis", "workers.celery_worker", "workers.device.client"},
    "workers/inference": {"celery", "kombu", "redis", "workers.celery_worker", "workers.device", "workers.training"},
    "workers/models": {"celery", "kombu", "torch", "workers.celery_worker", "workers.device", *INFERENCE},
    "workers/training/controller": {
        "torch",
        "transformers",
        "datasets",
        "accelerate",
        "workers.training.trainer",
        *INFERENCE,
    },
    "workers/training/trainer": {"celery", "kombu", "redis", "workers.celery_worker", "workers.device"},
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_folder_is_the_import_rule(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name in imports(path):
            parents = {".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 2)}
            assert not parents & FOLDERS[folder], f"{path.relative_to(ROOT)} imports {name}"


def test_there_are_no_import_cycles() -> None:
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in SOURCES}
    graph = {name: imports(path) & names.keys() - {name} for name, path in names.items()}
    while leaves := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"a cycle among {sorted(graph)}"


def test_packages_import_one_way_too() -> None:
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        package = ".".join(path.relative_to(ROOT).parts[:-1])
        needed = {".".join(name.split(".")[:2]) for name in imports(path)}
        graph.setdefault(package, set()).update(needed)
    packages = {name for name in graph if "." in name}
    graph = {name: graph[name] & packages - {name} for name in packages}
    while leaves := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"a cycle among {sorted(graph)}"


def test_files_stay_small() -> None:
    large = [path for path in (*SOURCES, *TESTS) if len(path.read_text().splitlines()) > 600]
    assert not large


def test_the_environment_is_read_in_one_module() -> None:
    allowed = {"common/settings.py", "common/gpus.py"}  # the second reads CUDA_VISIBLE_DEVICES
    for path in SOURCES:
        text = path.read_text()
        if re.search(r"os\.getenv|os\.environ\.get|os\.environ\[['\"]\w+['\"]\](?! =)", text):
            assert str(path.relative_to(ROOT)) in allowed, path


def test_a_type_checker_knows_the_names_of_every_module() -> None:
    for path in SOURCES:
        late = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "__getattr__"]
        assert not late, f"{path}: __getattr__ makes mypy take any name; put it under `if not TYPE_CHECKING`"


def test_redis_keys_are_named_in_one_module() -> None:
    for path in SOURCES:
        if path.name != "keys.py":
            assert '"hugqueue:' not in path.read_text(), path


def test_module_names_say_something() -> None:
    for path in SOURCES:
        for part in path.relative_to(ROOT).with_suffix("").parts:
            assert not FORBIDDEN_NAMES.fullmatch(part), path


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, json\nsys.argv = ['producer', '--help']\nfrom producer.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\nprint(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & {"redis", "pyarrow", "numpy", "kombu", "celery", "torch", "transformers", "rich"}


def test_the_celery_process_never_loads_torch() -> None:
    code = "import sys, workers.app; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]


def test_listing_jobs_loads_no_arrow() -> None:
    code = (
        "import sys, producer.client, producer.cli.commands.jobs; "
        "print('pyarrow' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]


def test_a_submit_into_a_file_loads_neither_celery_nor_rich() -> None:
    code = (
        "import sys, producer.cli.main, producer.cli.commands.submit, producer.cli.run_submit, producer.submit.plan; "
        "import common.payloads.job_payloads, common.payloads.own_columns, producer.outputs.text; "
        "print({'celery', 'kombu', 'rich', 'yaml', 'pyarrow.compute', 'pyarrow.parquet', 'fsspec', 'huggingface_hub'}"
        " & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", "each costs a short command more than its own work"


def test_payloads_are_made_without_pandas() -> None:
    assert importlib.util.find_spec("pandas") is not None  # pyarrow imports it where it is installed, if it is let
    code = (
        "import sys; from common.payloads.codec import *; from common.records import Failure, Outcome, Record; "
        "records = [Record(0, 'a'), Record('b', {'text': 'é'}), Record(2, None, Failure('bad_json', 'why'))]; "
        "outcomes = [Outcome([{'score': 0.5}]), Outcome(failure=Failure('no', 'why')), Outcome('é', truncated=True)]; "
        "found = list(iter_outcomes(decode_outcomes(encode_outcomes([1, 3, 4], [0, 'b', 2], outcomes, None)))); "
        "print(decode_records(encode_records(records)) == records, "
        "found == list(zip([1, 3, 4], [0, 'b', 2], outcomes)), 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["True", "True", "False"]


def test_vectors_reach_their_file_without_pandas() -> None:
    code = (
        "import sys, io; import pyarrow as pa, pyarrow.parquet as pq; from common.payloads.codec import *; "
        "from common.payloads.chunk_rows import chunk_rows; from common.payloads.part_files import encode_part; "
        "from common.payloads.result_tables import ResultTable; from common.results import ResultLayout; "
        "from common.records import Failure, Outcome, Record; "
        "outcomes = [Outcome([0.5, 2.0]), Outcome(failure=Failure('no', 'why'))]; kind = pa.list_(pa.float32(), 2); "
        "payload = encode_outcomes([0, 1], ['a', 'b'], outcomes, kind); "
        "rows = chunk_rows([Record('a', 'x'), Record('b', 'y')], [payload]); "
        "table = ResultTable(ResultLayout(), {'text': 'text'}, kind); "
        "part = encode_part(rows, table, 'parquet'); loaded = 'pandas' in sys.modules; "
        "read = pq.ParquetFile(io.BytesIO(part), pre_buffer=False).read(use_threads=False); "
        "print(read['output'].to_pylist(), read['truncated'].to_pylist(), loaded)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[[0.5, 2.0], None] [False, False] False\n"
