"""Job filters: by status, name, labels and age."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from common.errors import UsageError
from common.jobs import Job, JobSpec, JobStatus, check_label


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Conditions that a job must meet; those left out always hold."""

    status: JobStatus | None = None
    name: str | None = None  #: `*` matches any text
    labels: Mapping[str, str] = field(default_factory=dict)
    older_than: float | None = None  #: seconds since they were submitted

    def matches(self, job: Job) -> bool:
        """Whether a job meets all conditions."""
        return self.status in (None, job.status) and self.matches_spec(job.spec)

    def matches_spec(self, spec: JobSpec) -> bool:
        """Whether a job of that spec meets all conditions but for its status."""
        if not self.labels.items() <= spec.labels.items():
            return False
        if self.older_than is not None and time.time() - spec.created_at <= self.older_than:
            return False
        return self.name is None or _matches_wildcard(self.name, spec.name or "")

    def __bool__(self) -> bool:
        """Whether there is any condition."""
        return bool(self.status or self.name is not None or self.labels or self.older_than is not None)

    def __str__(self) -> str:
        parts = [f"status {self.status}"] if self.status else []
        parts += [f"name {self.name!r}"] if self.name is not None else []
        parts += [f"an age above {self.older_than:g} s"] if self.older_than is not None else []
        return " and ".join(parts + [f"label {key}={value}" for key, value in self.labels.items()])


def _matches_wildcard(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


def parse_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return labels from texts KEY=VALUE.

    Raises:
        UsageError: A text has no `=`, a key occurs twice, or a label is too long or has control characters.
    """
    parsed: dict[str, str] = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals:
            raise UsageError(f"-l {label!r}: expected KEY=VALUE, such as run=7.")
        if parsed.get(key, value) != value:
            raise UsageError(f"-l {label!r}: the label {key!r} is given twice, as {parsed[key]!r} before.")
        parsed[key] = value
    return check_labels(parsed)


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels.

    Raises:
        UsageError: A label is too long, has control characters, or is not text.
    """
    for key, value in labels.items():
        try:
            check_label(key, value)
        except ValueError as error:
            raise UsageError(f"The label {key}={value}: {error}.") from error
    return dict(labels)
