"""The rules of docs/design.md that a machine can check."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    path.relative_to(ROOT / "flowkit").with_suffix("").as_posix(): path
    for path in sorted((ROOT / "flowkit").rglob("*.py"))
}


def levels() -> dict[str, int]:
    """The row of each module in the table of docs/design.md, counted from the top."""
    rows = re.findall(
        r"^\| \d \| (.*?) \|", (ROOT / "docs/design.md").read_text(), flags=re.MULTILINE
    )
    return {name: row for row, cell in enumerate(rows) for name in re.findall(r"`(\w+/?)`", cell)}


def row_of(module: str) -> int:
    table = levels()
    return table["flow/"] if module.startswith("flow/") else table[module]


def imports(path: Path) -> set[str]:
    """The modules of flowkit that a file imports anywhere in it, as paths below flowkit/."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    below = {name.removeprefix("flowkit.").replace(".", "/") for name in names}
    return {name if name in MODULES else f"{name}/__init__" for name in below} & set(MODULES)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__"])
def test_a_module_imports_from_rows_above_it_only(module):
    for imported in imports(MODULES[module]) - {"__init__"}:
        assert row_of(imported) <= row_of(module), f"{module} imports {imported}"


@pytest.mark.parametrize("module", list(MODULES))
def test_the_library_is_silent_and_knows_no_command_line(module):
    source = MODULES[module].read_text(encoding="utf-8")
    tree = ast.parse(source)
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    main = source.partition('\nif __name__ == "__main__":')[2]
    assert "print" not in called or "print(" in main
    assert not {"click", "flowkit_cli"} & {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }


@pytest.mark.parametrize("module", list(MODULES))
def test_a_module_opens_with_one_sentence(module):
    docstring = ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    assert docstring and docstring.splitlines()[0].endswith((".", ":"))
