"""Labels of the user's own, and the sentence that each is put into: what zero-shot tasks ask for, of text or of files.

They come with the record or with the job; `params` are those of the pipeline's `preprocess`.
"""

from collections.abc import Mapping
from typing import Any

from common.errors import RecordError


def labelling(task: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record is to be labelled with, the labels as a list.

    Raises:
        RecordError: `missing_field`, no labels.
    """
    labels = params.get("candidate_labels")
    if labels is None:
        raise RecordError(
            "missing_field", f"{task} needs candidate_labels, with the record or as -p candidate_labels=a,b."
        )
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    return {**params, "candidate_labels": labels}
