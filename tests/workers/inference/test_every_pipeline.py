"""Every task of the installed transformers has a row, or a reason why it has none."""

from transformers.pipelines import PIPELINE_REGISTRY, TASK_ALIASES

from common.tasks import ALIASES, TASKS
from workers.inference.tasks.runners import find_runner

#: Tasks of transformers that users would expect and do not find, each with the reason.
LEFT_OUT: dict[str, str] = {}


def test_every_task_of_transformers_has_a_row_or_a_reason():
    offered = set(PIPELINE_REGISTRY.get_supported_tasks())
    assert offered - TASKS.keys() - ALIASES.keys() == LEFT_OUT.keys()
    assert {alias: ALIASES.get(alias) for alias in TASK_ALIASES} == TASK_ALIASES


def test_default_models_are_those_that_transformers_pins_but_for_a_small_one():
    own = {"image-text-to-text"}
    for name in TASKS.keys() & set(PIPELINE_REGISTRY.get_supported_tasks()) - own - TASK_ALIASES.keys():
        default = PIPELINE_REGISTRY.check_task(name)[1]["default"]["model"]
        pinned = default.get("pt") if isinstance(default, dict) else default
        assert (TASKS[name].model, TASKS[name].revision) == tuple(pinned), name


def test_every_row_has_a_runner_that_runs_it():
    for name in TASKS:
        tasks = getattr(find_runner(name), "tasks", None)
        assert tasks is None or name in {task.name for task in tasks}
