"""The steps of a run on a GPU, in their order: what is most likely to show a fault first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[2] / "tests" / "gpu"
#: Tables: name, seconds, and arguments of `benchmarks.gpu.table`.
_TABLES: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("embedding-bert-base", 90, ("--task", "embedding", "--model", "bert-base", "--records", "98304")),
    ("embedding-minilm", 70, ("--task", "embedding", "--model", "minilm", "--records", "196608")),
    ("fill-mask", 60, ("--task", "fill-mask", "--model", "bert-base", "--records", "16384")),
    ("text-classification", 60, ("--task", "text-classification", "--model", "bert-base", "--records", "32768")),
    ("text-generation", 60, ("--task", "text-generation", "--model", "small-causal", "--records", "2048")),
)


@dataclass(frozen=True, slots=True)
class Step:
    """A program of its own."""

    name: str
    seconds: float  #: after which it is stopped
    arguments: Sequence[str]  #: of Python
    writes: bool = False  #: whether it takes `--json FILE` for its figures

    def with_results(self, folder: Path) -> Sequence[str]:
        """Return the arguments that name its file in the folder of results."""
        return ("--json", str(folder / f"{self.name}.json")) if self.writes else ()


def steps(device: str, *, tiny: bool) -> list[Step]:
    """Return all steps.

    Args:
        device: `cuda:0`, or `cpu`.
        tiny: whether to use small models and few texts.
    """
    pytest = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=60")
    found = [Step("machine", 60, ("-m", "benchmarks.gpu.machine", "--device", device, *_tiny(tiny)), writes=True)]
    for path in sorted(TESTS.glob("test_*.py")):
        name = path.stem.removeprefix("test_").replace("_", "-")
        found.append(Step(f"test-{name}", 90, (*pytest, str(path))))
    for name, seconds, arguments in _TABLES:
        table = ("-m", "benchmarks.gpu.table", "--device", device, *arguments, *_tiny(tiny))
        table += ("--rounds", "1") if tiny else ()
        found.append(Step(f"table-{name}", seconds, table, writes=True))
    examples, mix = ("16", "short") if tiny else ("512", "mixed")
    tuned = ("-m", "benchmarks.finetune", "--rounds", "1", "--examples", examples, "--mix", mix)
    found.append(Step("finetune", 60, tuned))
    return found


def _tiny(tiny: bool) -> Sequence[str]:
    return ("--tiny",) if tiny else ()
