"""Labels of the user's own, and the sentence that each is put into: what zero-shot tasks ask for, of text or of files.

They come with the record or with the job; `params` are those of the pipeline's `preprocess`.
"""

from collections.abc import Mapping
from typing import Any

from common.errors import ModelError, RecordError


def check_job_labelling(params: Mapping[str, Any]) -> None:
    """Check what a job brings for all its records.

    Raises:
        ModelError: `bad_param`, no label in the list, or no place for it in the template.
    """
    try:
        _check(_listed(params))
    except RecordError as error:
        raise ModelError("bad_param", error.message) from error


def labelling(task: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record is to be labelled with, the labels as a list.

    Raises:
        RecordError: `missing_field`, no labels; `wrong_type`, labels or a template that are none.
    """
    listed = _listed(params)
    if "candidate_labels" not in listed:
        raise RecordError(
            "missing_field", f"{task} needs candidate_labels, with the record or as -p candidate_labels=a,b."
        )
    _check(listed)
    return listed


def _listed(params: Mapping[str, Any]) -> dict[str, Any]:
    labels = params.get("candidate_labels")
    if not isinstance(labels, str):
        return dict(params)
    return {**params, "candidate_labels": [label.strip() for label in labels.split(",") if label.strip()]}


def _check(params: Mapping[str, Any]) -> None:
    if "candidate_labels" in params and not params["candidate_labels"]:
        raise RecordError("wrong_type", "candidate_labels must name at least one label.")
    template = params.get("hypothesis_template", "{}")
    try:
        placed = template.format("label") != template.format("")
    except (IndexError, KeyError, ValueError, AttributeError):
        placed = False
    if not placed:
        raise RecordError("wrong_type", f"hypothesis_template must have one {{}} for the label, found {template!r}.")
