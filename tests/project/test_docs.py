"""The documentation tells all there is, and nothing else: looked up in the code itself."""

import ast
import pkgutil
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import click
import pytest

from common.settings import Settings
from common.task_params import GENERATE_PARAMS, TASK_PARAMS
from common.tasks import ALIASES, TASKS
from producer.cli.main import COMMANDS, COMMON_OPTIONS
from producer.cli.main import main as producer
from tests.support.processes import ROOT
from workers.cli import main as workers

DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])
SOURCES = sorted(path for package in ("common", "producer", "workers") for path in (ROOT / package).rglob("*"))
#: Calls whose first argument is an error code; any other may give one as `code=`.
CODED = re.compile(r"(Failure|CodedError|ModelError|WorkerError|RecordError)$")
CODE = re.compile(r"[a-z]+(_[a-z]+)*")
WORD = re.compile(r"`([^`]+)`")

PROGRAMS = {"producer": producer, "workers": workers}
CALLS = [("producer", name) for name in COMMANDS] + [("workers", name) for name in workers.commands]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def sections(name: str) -> dict[str, str]:
    """Return heading -> text of the second level."""
    parts = re.split(r"^## (.+)$", read(name), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of every table row; a `|` of code is written as `\\|`."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("|--"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def words(text: str) -> set[str]:
    return set(WORD.findall(text))


def command(program: str, name: str) -> click.Command:
    group = PROGRAMS[program]
    found = group.get_command(click.Context(group), name)
    assert found is not None, f"there is no command {program} {name}"
    return found


def options_of(found: click.Command) -> list[click.Option]:
    return [option for option in found.params if isinstance(option, click.Option) and option not in COMMON_OPTIONS]


def spellings(option: click.Option) -> list[str]:
    """Return how an option may be written, what takes it back included."""
    return [*option.opts, *option.secondary_opts]


# Commands


@pytest.mark.parametrize(("program", "name"), CALLS)
def test_every_option_of_a_command_is_documented_in_its_section(program: str, name: str) -> None:
    found = command(program, name)
    text = sections("docs/cli.md")[f"{program} {name}"]
    told = {word for phrase in words(text) for word in phrase.split()}
    for option in options_of(found):
        assert set(spellings(option)) <= told, f"{program} {name}: {option.opts} is not told"
        if isinstance(option.type, click.Choice):
            assert set(option.type.choices) <= told, f"{program} {name}: a choice of {option.opts} is not told"


def test_the_common_options_come_before_all_sections() -> None:
    told = words(read("docs/cli.md").split("\n## ")[0])
    assert {spelling for option in COMMON_OPTIONS for spelling in spellings(option)} <= told


@pytest.mark.parametrize(("program", "name"), CALLS)
def test_no_section_documents_an_option_that_does_not_exist(program: str, name: str) -> None:
    known = {word for option in options_of(command(program, name)) for word in spellings(option)}
    first_cells = [cells[0] for cells in rows(sections("docs/cli.md")[f"{program} {name}"])]
    told = {word for cell in first_cells for phrase in words(cell) for word in phrase.split() if word.startswith("-")}
    assert told <= known


def test_every_command_has_its_section_and_no_other_does() -> None:
    told = {title for title in sections("docs/cli.md") if title.partition(" ")[0] in PROGRAMS}
    assert told == {f"{program} {name}" for program, name in CALLS}


def test_the_exit_statuses_in_the_sources_are_documented() -> None:
    told = {cells[0] for cells in rows(sections("docs/cli.md")["Exit status"])}
    assert {"0", "1", "2", "3", "130"} <= told


# Command lines


def shell_lines(path: Path) -> Iterator[str]:
    """Yield the lines of the shell that the file shows, joined where they go on."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        if language not in ("", "sh"):
            continue
        # What is set in is a drawing or the output of a command.
        yield from (line for line in block.replace("\\\n", " ").splitlines() if not line.startswith(" "))


def calls_in(line: str) -> Iterator[list[str]]:
    """Yield the words of each call of one of our programs in a line, without redirections."""
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    call: list[str] = []
    skip = False
    for word in [*lexer, "|"]:
        if word in ("|", "&&", ";", "||", "&"):
            if call and call[0] in PROGRAMS:
                yield call
            call = []
        elif skip or word in ("<", ">", ">>"):
            skip = not skip
        else:
            call.append(word)


COMMAND_LINES = [
    pytest.param(path, call, id=f"{named(path)}: {' '.join(call)}")
    for path in DOCS
    for line in shell_lines(path)
    if re.search(r"\b(producer|workers) ", line)
    for call in calls_in(line)
]


@pytest.mark.parametrize(("path", "call"), COMMAND_LINES)
def test_a_command_line_that_is_shown_can_be_typed(path: Path, call: list[str]) -> None:
    program, name, *arguments = call
    context = command(program, name).make_context(name, list(arguments))
    task = context.params.get("task")
    assert task is None or task in {*TASKS, *ALIASES} or task == "count-words"
    for word in (argument.partition("=")[2] or argument for argument in arguments):
        assert not word.startswith("examples/") or (ROOT / word).exists(), f"{named(path)}: there is no {word}"


def test_the_readme_shows_the_main_job_and_what_make_demo_runs() -> None:
    shown = [" ".join(call) for line in shell_lines(ROOT / "README.md") for call in calls_in(line)]
    demo = re.search(r"^demo:.*\n\t@\$\(BIN\)/(.*)$", read("Makefile"), re.MULTILINE)
    assert demo is not None and demo[1] in shown


# Errors, settings, tasks


def raised_codes() -> dict[str, str]:
    """Return code -> file, of every error code that stands in the sources."""
    codes: dict[str, str] = {}
    for path in SOURCES:
        if path.suffix == ".lua":
            found = re.findall(r"'failure_code', '(?!failure_)(\w+)'", path.read_text("utf-8"))
        else:
            found = list(_codes(path)) if path.suffix == ".py" else []
        codes |= dict.fromkeys(found, named(path))
    return codes


def _codes(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        values: list[ast.AST] = []
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            values += [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            values += node.args[:1] if CODED.search(name) else []
        elif isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["code"]:
            values += [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else []
        for value in values:
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and CODE.fullmatch(value.value):
                yield value.value


def test_every_error_code_is_explained_and_none_that_is_gone() -> None:
    told = [cells[0].strip("`") for cells in rows(read("docs/errors.md")) if cells[0] != "code"]
    raised = raised_codes()
    assert len(told) == len(set(told)), "a code is explained twice"
    assert len(raised) > 30
    assert {code: where for code, where in raised.items() if code not in told} == {}
    assert set(told) - raised.keys() == set()


def test_every_setting_is_listed_with_its_default() -> None:
    table = {cells[0].replace("`", ""): cells[1].strip("`") for cells in rows(read("docs/settings.md"))}
    told = {name: value for name, value in table.items() if name.startswith(("HUGQUEUE_", "CELERY_"))}
    assert told.keys() == {setting.metadata["env"] for setting in fields(Settings)}
    for setting in fields(Settings):
        if not isinstance(setting.default, Path):
            assert told[setting.metadata["env"]] == shown(setting.default), setting.name


def shown(default: object) -> str:
    """Return how a default stands in the table."""
    if isinstance(default, bool) or (default and isinstance(default, int | float)):
        return str(default) if 0 < default < 1 else str(int(default))
    return str(default) if default else "none"


def test_every_task_is_listed_with_its_fields_and_default_model() -> None:
    table = {frozenset(words(cells[0])): cells for cells in rows(read("docs/tasks.md").split("\n## ", 1)[0])}
    for name, task in TASKS.items():
        names = {name, *(alias for alias, target in ALIASES.items() if target == name)}
        cells = table[frozenset(names | ({"translation_xx_to_yy"} if name == "translation" else set()))]
        assert words(cells[1]) == {field for needed in task.fields for field in needed}, name
        assert words(cells[2]) == set(task.optional), name
        assert cells[3] == f"`{task.model}`", name
        assert name in sections("docs/tasks.md")
        assert f"`{name}`" in sections("README.md")["Tasks"]


def test_the_type_of_every_output_is_documented() -> None:
    told = {name: cells[1] for cells in rows(sections("docs/tasks.md")["Types of outputs"]) for name in words(cells[0])}
    for name, task in TASKS.items():
        assert told.get(name) == f"`{task.output_form({})}`", name


#: Tasks whose sections refer to the table of the parameters of `generate`.
_GENERATING = ("any-to-any", "image-text-to-text", "text-generation", "translation")


def declared(title: str) -> set[str]:
    """Return the parameters that a section of docs/tasks.md has to list."""
    generate = set(GENERATE_PARAMS)
    if title == "Parameters of generate":
        return generate
    # Those that automatic-speech-recognition shares with `generate` stand in its own table.
    return TASK_PARAMS[title].keys() - (generate if title in _GENERATING else set())


@pytest.mark.parametrize(
    "title", [*sorted(TASKS.keys() - {"summarization", "text2text-generation"}), "Parameters of generate"]
)
def test_every_parameter_of_a_task_is_listed_and_no_other(title: str) -> None:
    column = 1 if title == "Parameters of generate" else 0
    table = [cells for cells in rows(sections("docs/tasks.md")[title]) if cells[0] not in ("parameter", "about")]
    assert {word for cells in table for word in words(cells[column])} == declared(title)


# Links


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


LINKS = [
    pytest.param(path, link, id=f"{named(path)}: {link}")
    for path in DOCS
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8"))
    if not link.startswith(("http://", "https://"))
]


@pytest.mark.parametrize(("path", "link"), LINKS)
def test_a_link_leads_somewhere(path: Path, link: str) -> None:
    target, _, anchor = link.partition("#")
    file = (path.parent / target) if target else path
    assert file.exists(), f"{named(path)} links to {target}, which is not there"
    assert not anchor or anchor in anchors(file), f"{named(file)} has no heading #{anchor}"


def test_the_glossary_has_each_word_once() -> None:
    terms = [cells[0] for cells in rows(read("docs/glossary.md")) if cells[0] != "word"]
    assert len(terms) == len(set(terms)) and {"task", "job", "record", "chunk", "ticket"} <= set(terms)


def test_the_readme_keeps_its_order() -> None:
    wanted = ["Quick start", "With your own Redis", "Several GPUs, several machines", "Flower", "Tasks"]
    wanted += ["Inputs and outputs", "Fine-tuning", "Speed", "Limits", "Documentation"]
    titles = list(sections("README.md"))
    assert all(titles.index(first) < titles.index(second) for first, second in pairwise(wanted))
    assert len(read("README.md").splitlines()) <= 200


def test_the_tests_that_the_table_of_faults_names_are_there() -> None:
    named_there: set[str] = set()
    for cells in rows(sections("docs/reliability.md")["How it was tested"]):
        for file, functions in re.findall(r"`(?:tests/)?(?:[\w/]+/)?(test_\w+\.py)`(?:: ([^;]+))?", cells[-1]):
            [path] = (ROOT / "tests").rglob(file)
            tests = set(re.findall(r"^def test_(\w+)", path.read_text(), re.MULTILINE))
            assert words(functions) <= tests, f"{file}: {sorted(words(functions) - tests)}"
            named_there.add(file)
    assert {path.name for path in (ROOT / "tests" / "faults").glob("test_*.py")} <= named_there


# Packages


def packages_in(folder: Path, depth: int = 0) -> Iterator[str]:
    """Yield each package below a folder as a line of the tree begins."""
    for path in sorted(folder.glob("*/__init__.py")):
        yield f"{'  ' * depth}{path.parent.name}/"
        yield from packages_in(path.parent, depth + 1)


@pytest.mark.parametrize("package", ["common", "hugqueue", "producer", "workers"])
def test_the_tree_shows_every_package(package: str) -> None:
    tree = re.findall(r"^ *\w+/(?=  )", sections("docs/architecture.md")["The tree"], re.MULTILINE)
    first = tree.index(f"{package}/")
    shown = next((tree[first + 1 : n] for n in range(first + 1, len(tree)) if tree[n][0] != " "), tree[first + 1 :])
    assert sorted(shown) == sorted(packages_in(ROOT / package, 1))


DOTTED = sorted(set(re.findall(r"`((?:common|producer|workers)(?:\.\w+)+)`", read("docs/architecture.md"))))


@pytest.mark.parametrize("name", DOTTED)
def test_what_the_architecture_names_is_there(name: str) -> None:
    pkgutil.resolve_name(name)
