"""Names of models and revisions: what the Hub's own library refuses is refused here, before any work."""

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ModelError, UsageError, WorkerError
from common.models.references import check_revision, find_model, is_hub_id
from workers.models.hub_download import _translate_error

NAMES = [
    "gpt2", "org/model", "Foo-BAR_foo.bar123", "_a/_b_", "a" * 96, "a" * 97, "o/" + "a" * 96, "a" * 96 + "/" + "b" * 96,
    "a--b", "a..b", "org/.model", "org/model-", "-org/model", "model.git", "a/b/c", "org/", "/model", "", " ", "a b",
    "org/m\n", "mod\u00e8le", "\ud55c\uad6d\uc5b4", "org@v1/model", "https://huggingface.co/org/model",
]  # fmt: skip


def library_takes(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@pytest.mark.parametrize("name", NAMES)
def test_a_hub_id_is_what_the_library_takes(name: str) -> None:
    assert is_hub_id(name) == library_takes(name)


@given(st.text(alphabet="ab-._/ 1", max_size=8))
def test_any_short_name_is_a_hub_id_where_the_library_takes_it(name: str) -> None:
    assert is_hub_id(name) == library_takes(name)


@pytest.mark.parametrize("name", ["a--b", "org/model.git", "-m", "a" * 97, "org/m\u00f6del"])
def test_a_name_that_the_hub_cannot_have_is_refused_at_submit(name: str) -> None:
    with pytest.raises(UsageError, match="neither a Hub id"):
        find_model(name)


@pytest.mark.parametrize("name", ["main", "refs/pr/1", "v1.0+cu128", "step=1000,seed=7", "f" * 40])
def test_a_revision_that_the_hub_can_have_is_taken(name: str) -> None:
    assert check_revision(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a..b", "/main", "refs/pr/1/", "m\u00e4in"])
def test_a_revision_that_the_hub_cannot_have_is_refused_at_submit(name: str) -> None:
    with pytest.raises(UsageError, match="--revision"):
        check_revision(name)


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (HFValidationError("Cannot have --"), ModelError, "model_not_found"),
        (ConnectionResetError("reset"), WorkerError, "hub_unavailable"),
        (TimeoutError("slow"), WorkerError, "hub_unavailable"),
        (RuntimeError("the downloader broke off"), WorkerError, "hub_unavailable"),
    ],
)
def test_only_a_fault_that_may_pass_is_tried_again(error: Exception, kind: type, code: str) -> None:
    found = _translate_error("org/model", None, error)
    assert (type(found), getattr(found, "code", None)) == (kind, code)
