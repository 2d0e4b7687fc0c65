"""Locations that a submit names: whether the process that submits may open them for whoever asked it to.

A user's own command opens what its user may. A process that submits for others opens what all of them share.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

from common.errors import UsageError
from common.inputs.hub_datasets import is_hub_dataset
from common.settings import absolute
from common.storage.locations import MayOpen, any_location, is_url, strip_file_scheme
from producer.submit.job_input import names_job
from producer.submit.options import SubmitOptions


def check_locations(inputs: Sequence[str], options: SubmitOptions, may_open: MayOpen) -> None:
    """Check the inputs, the output, the store and the ranges of a submit; files that records name are checked later.

    Raises:
        UsageError: One of them may not be opened here.
    """
    if may_open is any_location:
        return
    for argument, name in _locations(inputs, options):
        if not _may_open(name, may_open):
            raise UsageError(
                f"{argument}={name[:200]!r} is not under a shared location, so it may not be opened here. Put it under "
                "a directory or a URL in HUGQUEUE_SHARED of the process that submits."
            )


def _locations(inputs: Sequence[str], options: SubmitOptions) -> Iterator[tuple[str, str]]:
    yield from (("records", name) for name in inputs if not (is_hub_dataset(name) or names_job([name])))
    ranges = options.params.get("ranges") if isinstance(options.params, Mapping) else None
    named = {"output": options.output, "store": options.store, "ranges": ranges if isinstance(ranges, str) else None}
    yield from ((argument, str(name)) for argument, name in named.items() if name is not None)


def _may_open(name: str, may_open: MayOpen) -> bool:
    name = strip_file_scheme(name)
    if not is_url(name) and ".." in PurePath(name).parts:  # beside a pattern it may lead out of what is shared
        return False
    return name != "-" and may_open(absolute(name))
