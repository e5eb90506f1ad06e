"""Rules of the repository: what a reviewer would otherwise have to look for, file by file."""

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "longspan"

MOST_FILE_LINES, MOST_FUNCTION_LINES, MOST_FILE_BYTES = 400, 60, 500_000
# What is longer than the rule allows, and why. An entry that is no longer needed fails the test.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
# Recipes that are more than a glance, and why.
LONG_RECIPES: dict[str, str] = {"smollm2-1m.toml": "three stages with their gates, and the whole evaluation"}
# Fields of settings that no line of longspan/ reads by name, and why.
UNREAD_FIELDS: dict[str, str] = {}

# Nothing executable is read from outside, and nothing is run through a shell.
FORBIDDEN = (
    r"(?m)^\s*(?:from|import)\b.*\b(?:pickle|cloudpickle|dill|joblib|shelve|marshal|yaml)\b",
    r"torch\.load\(",
    r"allow_pickle\s*=\s*True",
    r"trust_remote_code\s*=\s*True",
    r"shell\s*=\s*True",
    r"os\.system\(",
    r"(?<![\w.])(?:eval|exec)\(",
)
# Places that exist on one machine only, and addresses of package registries: a checkout works anywhere without them.
LOCAL = (
    r"(?<![\w.$}])/(work|tmp|root|home|mnt|scratch|Users)/",
    r"https?://[\w.]*(pypi|pythonhosted|registry\.npmjs|conda|download\.pytorch)\.",
    r"(extra-)?index-url",
)
SOURCES = {".py", ".md", ".toml", ".json", ".jinja", ".css", ".svg", ".sh", ".sbatch", ".yaml", ""}


@cache
def files() -> tuple[str, ...]:
    """Every file of the checkout that is tracked, or new and not ignored, as a path with forward slashes."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return tuple(sorted(name for name in set(listed) if name and (ROOT / name).is_file()))


def python_files(*folders: str) -> Iterator[tuple[str, str]]:
    """Name and text of each Python file below the folders."""
    for name in files():
        if name.endswith(".py") and name.split("/")[0] in folders:
            yield name, (ROOT / name).read_text(encoding="utf-8")


# -- size ------------------------------------------------------------------------------------------------------------


def test_files_are_short() -> None:
    found = {name: text.count("\n") for name, text in python_files("longspan", "tests", "benchmarks")}
    long = {name: lines for name, lines in found.items() if lines > MOST_FILE_LINES}
    assert long.keys() == LONG_FILES.keys(), long


def test_functions_are_short() -> None:
    long = {}
    for name, text in python_files("longspan", "tests", "benchmarks"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    long[f"{name}:{node.name}"] = lines
    assert long.keys() == LONG_FUNCTIONS.keys(), long


def test_no_large_file_outside_examples() -> None:
    large = {name: (ROOT / name).stat().st_size for name in files() if not name.startswith("examples/")}
    assert not {name: size for name, size in large.items() if size > MOST_FILE_BYTES}


# -- safety ----------------------------------------------------------------------------------------------------------


def matches(patterns: tuple[str, ...], text: str) -> list[str]:
    return [found.group(0) for pattern in patterns for found in re.finditer(pattern, text)]


def code_only(text: str) -> str:
    """The source without comments and docstrings, so that prose may name what the code must not do."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value = ast.Constant(value=...)
    return ast.unparse(tree)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "subprocess.run(line, shell=True)",
        "eval(text)",
    ],
)
def test_forbidden_calls_are_recognised(line: str) -> None:
    assert matches(FORBIDDEN, code_only(line))
    assert not matches(FORBIDDEN, code_only(f'"""Never {line}."""\nmodel.eval()  # {line}\n'))


def test_nothing_executable_is_read() -> None:
    found = {name: matches(FORBIDDEN, code_only(text)) for name, text in python_files("longspan")}
    assert not {name: calls for name, calls in found.items() if calls}


def test_no_machine_paths_and_no_registry_addresses() -> None:
    here = Path(__file__).relative_to(ROOT).as_posix()
    found = {}
    for name in files():
        if Path(name).suffix in SOURCES and name != here and (ROOT / name).stat().st_size <= MOST_FILE_BYTES:
            text = (ROOT / name).read_bytes().decode("utf-8", "replace")
            found[name] = matches(LOCAL, text)
    assert not {name: places for name, places in found.items() if places}


# -- settings --------------------------------------------------------------------------------------------------------


def settings_classes() -> dict[str, tuple[str, ast.ClassDef]]:
    """Every class of longspan/ that descends from `Settings`, with its file."""
    classes = {
        node.name: (name, node)
        for name, text in python_files("longspan")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
    }
    known = {"Settings"}
    while True:
        bases = {name: {ast.unparse(base).split(".")[-1] for base in node.bases} for name, (_, node) in classes.items()}
        grown = known | {name for name, parents in bases.items() if parents & known}
        if grown == known:
            return {name: classes[name] for name in known if name in classes}
        known = grown


def is_validator(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any("validator" in ast.unparse(decorator) for decorator in decorators)


def attributes_read(tree: ast.AST) -> set[str]:
    """Names read as attributes; what only a validator reads has no effect and does not count."""
    if is_validator(tree):
        return set()
    found = {tree.attr} if isinstance(tree, ast.Attribute) and isinstance(tree.ctx, ast.Load) else set()
    return found.union(*(attributes_read(child) for child in ast.iter_child_nodes(tree)))


def test_every_setting_does_something() -> None:
    read = set().union(*(attributes_read(ast.parse(text)) for _, text in python_files("longspan")))
    unread = {
        f"{name}.{entry.target.id}"
        for name, (_, node) in settings_classes().items()
        for entry in node.body
        if isinstance(entry, ast.AnnAssign)
        and isinstance(entry.target, ast.Name)
        and not re.fullmatch(r"Literal\[[^,]+\]", ast.unparse(entry.annotation))  # its one value is checked on reading
        and entry.target.id not in read
    }
    assert unread == UNREAD_FIELDS.keys()


def test_every_recipe_loads() -> None:
    from longspan.pipeline.recipe import Recipe

    recipes = [ROOT / name for name in files() if re.fullmatch(r"examples/[^/]+\.toml", name)]
    assert recipes, "examples/ holds no recipe"
    for path in recipes:
        assert Recipe.read(path) is not None
    long = {path.name for path in recipes if len(path.read_text(encoding="utf-8").splitlines()) > 60}
    assert long == LONG_RECIPES.keys(), "an example is read at one glance"


# -- words -----------------------------------------------------------------------------------------------------------


def readme_tree() -> dict[str, str]:
    """Path and caption of each line of the README's tree: two spaces a level, folders end in a slash."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- tree -->\n```text\n(.*?)```", text, re.DOTALL)
    assert block, "README.md has no tree: a ```text block after <!-- tree -->"
    found: dict[str, str] = {}
    above: list[str] = []
    for line in block.group(1).splitlines():
        indent, name, caption = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()
        del above[len(indent) // 2 :]
        found["".join(above) + name] = caption
        if name.endswith("/"):
            above.append(name)
    return found


def expected_tree() -> set[str]:
    """The top of the checkout, and every folder and file of longspan/; `__init__.py` goes with its folder."""
    top = {name.split("/")[0] + ("/" if "/" in name else "") for name in files()}
    inside = {name for name in files() if name.startswith("longspan/") and not name.endswith("__init__.py")}
    folders = {"/".join(name.split("/")[:depth]) + "/" for name in inside for depth in range(1, name.count("/") + 1)}
    return top | inside | folders


def test_readme_tree_is_the_disk() -> None:
    written, there = readme_tree(), expected_tree()
    missing = sorted(there - written.keys())
    surplus = sorted(name for name in written if not (ROOT / name).exists())
    bare = sorted(name for name, caption in written.items() if not caption)
    assert not missing, f"add to the tree in README.md: {missing}"
    assert not surplus, f"take out of the tree in README.md: {surplus}"
    assert not bare, f"these lines of the tree say nothing: {bare}"


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for name in files():
        if name.endswith(".md"):
            page = ROOT / name
            for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
                if not target.startswith(("http://", "https://", "mailto:")) and not (page.parent / target).exists():
                    broken.append(f"{name}: {target}")
    assert not broken


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "adr"
    pages = sorted(page.name for page in folder.glob("[0-9]*.md"))
    linked = sorted(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8")))
    assert linked == pages
    numbers = [page[:4] for page in pages]
    assert len(set(numbers)) == len(numbers)


def test_every_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["project"]["dependencies"],
        *(line for extra in project["project"]["optional-dependencies"].values() for line in extra),
        *project["dependency-groups"]["dev"],
        *project["build-system"]["requires"],
    ]
    names = {re.match(r"[\w-]+", line).group(0) for line in wanted}
    page = (ROOT / "docs" / "adr" / "0002-dependencies.md").read_text(encoding="utf-8")
    assert names == set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))


def test_every_golden_file_is_used() -> None:
    sources = "".join(text for name, text in python_files("tests") if name != "tests/test_repository.py")
    golden = [Path(name) for name in files() if name.startswith("tests/golden/")]
    unused = [path.as_posix() for path in golden if path.name not in sources and path.stem not in sources]
    assert not unused


# -- speed -----------------------------------------------------------------------------------------------------------


def test_help_answers_within_half_a_second() -> None:
    command = Path(sys.executable).with_name("longspan")
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([command, "--help"], check=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time, not time on the clock: a busy machine must not fail the test, and a slow import must.
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) <= 0.5
