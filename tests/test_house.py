"""The rules of docs/design.md that a machine can check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    path.relative_to(ROOT / "flowkit").with_suffix("").as_posix(): path
    for path in sorted((ROOT / "flowkit").rglob("*.py"))
}


# The packages and single modules of flowkit/, the lowest first: imports run downwards only.
ORDER = (
    "errors", "_cv2", "fields", "quantize", "workers", "video", "synthetic", "flow", "doctor",
    "records", "pictures", "extraction", "data", "networks", "scores", "training", "evaluation",
    "report",
)  # fmt: skip


def floor_of(module: str) -> int:
    return ORDER.index(module.split("/")[0])


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
def test_a_module_imports_from_its_own_and_lower_packages_only(module):
    for imported in imports(MODULES[module]) - {"__init__"}:
        assert floor_of(imported) <= floor_of(module), f"{module} imports {imported}"


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
