"""The rules of docs/design.md that a machine can check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    path.relative_to(ROOT / "flowkit").with_suffix("").as_posix(): path
    for path in sorted((ROOT / "flowkit").rglob("*.py"))
}


# The packages and single modules of flowkit/, the lowest first: imports run downwards only. A file
# of a package that may use more than the rest of it stands for itself.
ORDER = (
    "errors", "series", "documents", "torch_files", "image_files", "_cv2", "fields", "quantize",
    "workers", "stores", "video", "synthetic",
    "flow", "flow/cuda", "flow/methods", "doctor",
    "records", "pictures", "extraction",
    "data", "networks", "scores", "idt", "training", "evaluation",
    "report",
)  # fmt: skip

# What a room may take from beyond its door; everything else it gets as records or as scores.
DOORS = {
    "networks": {"errors", "documents", "torch_files", "workers", "records", "data"},
    "scores": {"errors", "documents", "data/splits"},
    "report/figures": {"errors", "documents", "scores"},
}


# Modules that read other files than a user may name: the system's, a wheel's, a cache's,
# or just written ones
READ_DIRECTLY = {
    "doctor", "flow/cuda/device", "networks/efficientnet", "pictures/lettering", "stores/objects",
    "stores/spans", "workers/children", "workers/machine",
}  # fmt: skip
READERS = {"read_text", "read_bytes", "fromfile"}


def floor_of(module: str) -> int:
    """The place in ORDER of a module or, where it has none of its own, of its package."""
    while module not in ORDER:
        module = module.rpartition("/")[0]
    return ORDER.index(module)


def imports(path: Path) -> set[str]:
    """The modules of flowkit that a file imports anywhere in it, as paths below flowkit/.

    Imports for types count as well. A package counts where a name is taken from itself.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if as_path(full) in MODULES else node.module)
    below = {as_path(name) for name in found}
    return {name if name in MODULES else f"{name}/__init__" for name in below} & set(MODULES)


def as_path(name: str) -> str:
    """A dotted name below flowkit as the path of its module, without ``.py``."""
    return name.removeprefix("flowkit").lstrip(".").replace(".", "/")


IMPORTS = {module: imports(path) - {"__init__"} for module, path in MODULES.items()}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__"])
def test_a_module_imports_from_its_own_and_lower_packages_only(module):
    for imported in IMPORTS[module]:
        assert floor_of(imported) <= floor_of(module), f"{module} imports {imported}"


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """All that `start` needs, over any number of arrows."""
    reached: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        one = ahead.pop()
        if one not in reached:
            reached.add(one)
            ahead += graph[one]
    return reached


@pytest.mark.parametrize("module", list(MODULES))
def test_no_module_is_needed_by_what_it_needs(module):
    assert module not in reachable(IMPORTS, module)


@pytest.mark.parametrize("room", DOORS)
def test_rooms_meet_at_their_doors_only(room):
    inside = [name for name in MODULES if name == room or name.startswith(f"{room}/")]
    for module in inside:
        for imported in IMPORTS[module]:
            known = {imported, imported.split("/")[0]}
            assert imported in inside or known & DOORS[room], f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.endswith("__init__")])
def test_importing_a_package_costs_nothing(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    typing_only = [n for n in tree.body if isinstance(n, ast.If)]  # if TYPE_CHECKING
    at_once = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert all(isinstance(n.test, ast.Name) and n.test.id == "TYPE_CHECKING" for n in typing_only)
    for node in at_once:
        assert isinstance(node, ast.ImportFrom)
        assert node.module in ("__future__", "importlib", "typing"), ast.unparse(node)


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


@pytest.mark.parametrize("module", sorted(set(MODULES) - READ_DIRECTLY))
def test_files_are_read_by_the_one_door_that_asks_what_they_are(module):
    """`documents.read_plain_file` and `open_plain_file`: a pipe would hang, a device never ends."""
    calls = [
        node.func.attr
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert not READERS & set(calls)
