"""Output targets: what `-o` names: a file on this machine, a directory with one file per chunk, or the Hub."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import StorageError, UsageError, path_errors
from common.jobs import JobSpec, Output
from common.output_types import OutputForm
from common.settings import Settings, absolute
from common.storage.locations import is_shared, is_url, strip_file_scheme
from common.tasks import declared_output
from producer.outputs.formats import check_output, is_csv, is_file_name
from producer.outputs.hub_target import HubOutput, is_hub_output, parse_hub_output
from producer.outputs.media_files import RESULTS, check_media_directory


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file on this machine for all results."""

    path: Path
    csv_safe: bool = False  #: whether CSV cells that a spreadsheet would run as formulas are escaped
    media_files: bool = False  #: whether images and sound in outputs become files beside it

    def __str__(self) -> str:
        """Return its path."""
        return str(self.path)


#: What is written from here, or by workers; and a dataset on the Hub.
FileTarget = OutputFile | Output
Target = FileTarget | HubOutput

#: Default format of the files in a directory.
PART_FORMAT = "parquet"
#: The format of a directory in which images and sound are files of their own.
MEDIA_FILES = "files"


def target_name(target: Target) -> str:
    """Return the target as messages name it."""
    return f"{target.location}/" if isinstance(target, Output) else str(target)


def parse_target(
    text: str | Path | None,
    format: str | None,
    *,
    csv_safe: bool = False,
    public: bool = False,
    responses: bool = False,
) -> Target | None:
    """Return the target for `-o`.

    It is a dataset on the Hub if the text begins with `hf:`; a directory if it is another URL, an existing directory or
    ends in `/`; else a file.

    Args:
        text: the value of `-o`, or None.
        format: the value of `--output-format`, for directories.
        csv_safe: escape CSV cells that a spreadsheet would run as formulas.
        public: create the repository on the Hub as a public one.
        responses: the results are responses to a batch file.

    Raises:
        UsageError: the format is given for something other than a directory, `csv_safe` for something other than CSV,
            `public` for something other than the Hub, a URL names a file, or the target cannot hold responses.
    """
    if text is None:
        _check_alone(format, csv_safe=csv_safe, public=public)
        return None
    if not str(text):
        raise UsageError("-o: the name is empty; name a file, or a directory as DIR/.")
    target = _target_of(strip_file_scheme(str(text)), format, public=public)
    if responses:
        check_responses(target)
    if not csv_safe:
        return target
    if not isinstance(target, OutputFile) or not is_csv(target.path):
        raise UsageError(f"--csv-safe is for CSV files; {target_name(target)} is not one.")
    return replace(target, csv_safe=True)


def _check_alone(format: str | None, *, csv_safe: bool, public: bool) -> None:
    """Refuse options of an output where there is none."""
    if format is not None:
        raise UsageError("--output-format is for directories; add -o DIR/.")
    if csv_safe:
        raise UsageError("--csv-safe is for CSV files; add -o FILE.csv.")
    if public:
        raise UsageError("--public is for datasets on the Hub; add -o hf:ORG/NAME.")


def _target_of(name: str, format: str | None, *, public: bool) -> Target:
    if is_hub_output(name):
        if format is not None:
            raise UsageError(f"--output-format is for directories (-o DIR/); files on the Hub are Parquet ({name}).")
        return parse_hub_output(name, public=public)
    if public:
        raise UsageError(f"--public is for datasets on the Hub (-o hf:ORG/NAME); {name} is not one.")
    if is_url(name) and is_file_name(name):
        raise UsageError(f"{name}: only a directory can be written at a URL, such as {name}/; or name a local file.")
    with path_errors(f"-o {name}"):
        is_directory = name.endswith("/") or is_url(name) or Path(name).is_dir()
    if is_directory:
        return _directory(name, format or PART_FORMAT)
    if format is not None:
        raise UsageError(f"--output-format is for directories (-o {name}/); the format of a file is its extension.")
    return OutputFile(Path(name))


def _directory(name: str, format: str) -> FileTarget:
    """Return a directory with one file per chunk, or with one for each image and sound."""
    if format != MEDIA_FILES:
        return Output(absolute(name).rstrip("/"), format)
    if is_url(name):
        raise UsageError(f"--output-format {MEDIA_FILES} writes to a directory of this machine, not to {name}.")
    return OutputFile(Path(name) / RESULTS, media_files=True)


def open_target(
    spec: JobSpec,
    output: str | Path | None,
    output_format: str | None = None,
    *,
    csv_safe: bool = False,
    public: bool = False,
) -> Target | None:
    """Return the target for the results of a job, as `parse_target`, after checking that it can be written.

    A dataset on the Hub is not checked here.

    Raises:
        UsageError: as for `parse_target` and `check_target`; or a fine-tune job has no results for the Hub.
    """
    target = parse_target(output, output_format, csv_safe=csv_safe, public=public, responses=spec.format is not None)
    if isinstance(target, HubOutput):
        if spec.training is not None:
            raise UsageError(f"Job {spec.id} trains a model: `producer models push job:{spec.id} ORG/NAME` uploads it.")
    elif target is not None:
        check_target(target, declared_output(spec))
    return target


def check_responses(target: Target) -> None:
    """Check that responses to a batch file can be written to the target.

    Raises:
        UsageError: it is not a file of JSON lines.
    """
    name = target.path.name if isinstance(target, OutputFile) and not target.media_files else ""
    if not name.lower().endswith((".jsonl", ".jsonl.gz")):
        raise UsageError(
            f"{target_name(target)}: responses to a batch file are JSON lines; name a .jsonl or .jsonl.gz file."
        )


def check_target(
    target: FileTarget, form: OutputForm | None, inputs: Sequence[str] = (), *, begun: bool = False
) -> None:
    """Check that the target can be written, without changing anything.

    Args:
        target: a file or directory.
        form: what the job declares of its outputs.
        inputs: the job's inputs, which must not be overwritten.
        begun: whether files in the directory may be the job's own.

    Raises:
        UsageError: it cannot be written; or the directory already holds an output.
    """
    if isinstance(target, OutputFile):
        if target.media_files:
            check_media_directory(target.path.parent, form)
        else:
            check_output(target.path, form, inputs)
        return
    from common.payloads.output_committer import check_output_location

    try:
        check_output_location(target.location, begun=begun)
    except StorageError as error:
        raise UsageError(error.message) from error


def written_by_workers(target: Target | None, settings: Settings) -> Output | None:
    """Return the target if workers write it themselves: a directory that all of them can access."""
    if not isinstance(target, Output):
        return None
    return target if settings.embedded or is_shared(target.location, settings.shared) else None
