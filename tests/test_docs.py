"""What the documents say is so: links, paths, commands, settings, examples in docstrings.

`python -m tests.test_docs` writes the settings table of docs/settings.md again.
"""

from __future__ import annotations

import doctest
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import pytest
import typer.main
from pydantic.fields import FieldInfo

from bench.__main__ import BENCHMARKS
from encore.cli import app
from encore.settings import Settings, variable
from schemas.errors import EncoreError

ROOT = Path(__file__).parents[1]
SETTINGS_PAGE = ROOT / "docs" / "settings.md"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / room / "README.md" for room in ("contracts", "examples/kuairand", "feature_repo")),
    ]
)
ROOMS = (
    *("schemas", "store", "aggregation", "catalog", "streams", "predictor"),
    *("audit", "training", "encore", "bench"),
)
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
    if ">>> " in path.read_text("utf-8")
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

SETTINGS_HEAD = """# Settings

Read from `encore.toml` in the working directory (or the file that `--config` or `ENCORE_CONFIG`
names) and from `ENCORE_*` environment variables, which win. An unknown key is an error that names
the nearest known one. Relative paths in the file are relative to the file. The running local stack
(`encore up`) fills in what is `local`.

| setting | default | what it is |
|---|---|---|
"""


def kind_of(field: FieldInfo) -> str:
    """The choices of a setting, for the table; nothing for the ordinary ones."""
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return " (" + ", ".join(f"`{choice}`" for choice in get_args(annotation)) + ")"
    assert not isinstance(annotation, UnionType) or type(None) in get_args(annotation)
    return ""


def in_toml(value: object) -> str:
    """A default as a person would write it into the file."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def settings_page() -> str:
    """docs/settings.md as the settings are."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{in_toml(field.default)}`"
        rows.append(f"| `{name}` | {default} | {field.description}{kind_of(field)} |\n")
    return SETTINGS_HEAD + "".join(rows)


def blocks(text: str) -> str:
    """The fenced code of a page, its inline code, and its indented commands, one a line."""
    fenced = re.findall(r"```[^\n]*\n(.*?)```", text, re.S)
    plain = re.sub(r"```.*?```", "", text, flags=re.S)
    inline = re.findall(r"`([^`\n]+)`", plain)
    indented = re.findall(r"^ {4}((?:encore|make|python) .*)$", plain, re.M)
    return "\n".join([*fenced, *inline, *indented])


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))


def test_the_settings_page_is_the_settings() -> None:
    wanted = SETTINGS_PAGE.read_text("utf-8")
    assert settings_page() == wanted, "look at it, then: python -m tests.test_docs"


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8"))
    broken = [
        link
        for link in links
        if not re.match(r"https?://|mailto:|#", link)
        and not (path.parent / link.partition("#")[0]).exists()
    ]
    assert not broken


@pytest.mark.parametrize("page", NAMES)
def test_anchors_are_headings(page: str) -> None:
    """`#a-heading`, of this page or another: lower case, hyphens for spaces, no other signs."""
    path = ROOT / page
    for file, anchor in re.findall(r"\]\(([\w./-]*)#([^)\s]+)\)", path.read_text("utf-8")):
        text = (path.parent / file if file else path).read_text("utf-8")
        heads = re.findall(r"^#+ (.*)$", text, re.M)
        assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", NAMES)
def test_commands_exist(page: str) -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    code = blocks((ROOT / page).read_text("utf-8"))
    named = set(re.findall(r"(?:^|[\s/$])encore ([a-z][a-z-]*)\b(?!/)", code, re.M))
    assert named <= known
    assert set(re.findall(r"(?:^|\$ |\b)make ([a-z]+)\b", code, re.M)) <= make_targets()


@pytest.mark.parametrize("page", NAMES)
def test_paths_exist(page: str) -> None:
    """Inline code that begins with one of the project's directories names a file or directory."""
    tops = "|".join(
        re.escape(path.name) for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."
    )
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.S)
    named = re.findall(rf"`((?:{tops})/[\w./-]*)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_each_rule_of_evolution_names_tests_that_exist() -> None:
    """docs/evolution.md: rules numbered without a gap, each with `file::test` that is there."""
    text = (ROOT / "docs" / "evolution.md").read_text("utf-8")
    rules = re.findall(r"^\| (\d+) \|.*\| (.+) \|$", text, re.M)
    assert [int(number) for number, _ in rules] == list(range(1, len(rules) + 1))
    for number, tests in rules:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert named, f"rule {number} names no test"
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text("utf-8"), f"rule {number}: {test}"


def table(page: str, first: str) -> list[list[str]]:
    """The rows of the table whose head begins with that cell, as cells without code marks."""
    text = (ROOT / page).read_text("utf-8")
    head = re.search(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    assert head, f"{page} has no table of {first}"
    return [[cell.strip(" `") for cell in line[1:-2].split(" |")] for line in head[1].splitlines()]


def family(error: type[EncoreError]) -> Iterator[type[EncoreError]]:
    yield error
    for below in error.__subclasses__():
        yield from family(below)


def test_the_errors_page_has_each_code_and_what_it_means() -> None:
    rows = table("docs/errors.md", "code")
    first, *others = family(EncoreError)
    wanted = {error.code: (error.__doc__ or "").partition("\n")[0] for error in others}
    assert {code: means for code, means, _ in rows} == wanted | {first.code: "A defect of encore."}
    assert all(do for *_, do in rows)


def test_the_errors_page_has_each_http_status() -> None:
    """Each `status=` of the service, what it gives routes, defects and refused requests."""
    source = "".join(path.read_text("utf-8") for path in (ROOT / "predictor").glob("*.py"))
    given = set(re.findall(r"\bstatus=(\d{3})\b|_error\(defect\(\), (\d{3})\)", source))
    statuses = {status for pair in given for status in pair if status} | {"400", "404", "405"}
    assert {row[0] for row in table("docs/errors.md", "status")} == statuses


def test_every_page_is_in_the_index() -> None:
    """docs/README.md leads to every page of docs/, and README.md to it."""
    docs = ROOT / "docs"
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (docs / "README.md").read_text("utf-8")))
    assert linked == {path.name for path in docs.glob("*.md")} - {"README.md"}
    assert "](docs/README.md)" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("page", NAMES)
def test_subcommands_and_options_exist(page: str) -> None:
    """Each `encore …` of a page: its subcommand, and its long options."""
    for line in re.findall(
        r"(?:^|[\s/$|])encore ([a-z][^|`\n]*)", blocks((ROOT / page).read_text("utf-8")), re.M
    ):
        words = line.split("  ")[0].split()
        command: Any = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        if hasattr(command, "commands") and words and "=" in line:
            command = command.commands["get"]
        options = {
            option for each in command.params for option in (*each.opts, *each.secondary_opts)
        }
        named = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        assert named <= options | {"--help", "--json", "--config"}, line


@pytest.mark.parametrize("page", NAMES)
def test_variables_exist(page: str) -> None:
    known = {variable(name) for name in Settings.model_fields} | {"ENCORE_CONFIG", "ENCORE_"}
    assert set(re.findall(r"\bENCORE_\w*", (ROOT / page).read_text("utf-8"))) <= known


@pytest.mark.parametrize("page", NAMES)
def test_modules_and_benches_exist(page: str) -> None:
    """Each `python -m …`, each benchmark, and each dotted name below a room."""
    code = blocks((ROOT / page).read_text("utf-8"))
    benches = set(re.findall(r"\bBENCH=\"?([a-z]+)|-m bench ([a-z]+)", code))
    assert {name for pair in benches for name in pair if name} <= {each.name for each in BENCHMARKS}
    for module in re.findall(r"python -m ([\w.]+)", code):
        assert module == "pytest" or names_something(module), module
    for room, rest in re.findall(rf"(?<![\w./])({'|'.join(ROOMS)})\.([\w.]*\w)", code):
        if not re.search(r"\.(py|md|toml|json|mjs|yml)$", f".{rest}") and room != "encore":
            assert names_something(f"{room}.{rest}"), f"{room}.{rest}"


def names_something(dotted: str) -> bool:
    """Whether there is such a module, or a module that has a word of that name. Nothing is
    imported: Feast would set up its metrics in this process."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:end])
        file = place.with_suffix(".py")
        if file.is_file():
            words = set(re.findall(r"\w+", file.read_text("utf-8")))
            return words.issuperset(parts[end:])
        if place.is_dir():
            return end == len(parts)
    return False


@pytest.mark.parametrize("page", NAMES)
def test_metrics_exist(page: str) -> None:
    """Each `encore_…` of a page is a series that some process exposes."""
    exposed = "".join(
        path.read_text("utf-8")
        for room in ("predictor", "encore")
        for path in (ROOT / room).glob("*.py")
    )
    named = set(re.findall(r"\bencore_[a-z_]+", (ROOT / page).read_text("utf-8")))
    assert {name for name in named if name.removesuffix("_total") not in exposed} == set()


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0
    assert failed == 0


if __name__ == "__main__":
    SETTINGS_PAGE.write_text(settings_page(), "utf-8")
