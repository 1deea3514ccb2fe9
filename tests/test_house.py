"""The rules of docs/design.md that a machine can check."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = {
    path.relative_to(ROOT / "flowkit").with_suffix("").as_posix(): path
    for path in sorted((ROOT / "flowkit").rglob("*.py"))
}


# The packages and single modules of flowkit/, the lowest first: imports run downwards only. A file
# of a package that may use more than the rest of it stands for itself.
ORDER = (
    "errors", "series", "documents", "torch_files", "image_files", "_cv2", "fields", "quantize",
    "own_code", "workers", "stores", "video", "synthetic",
    "flow", "flow/cuda", "flow/methods", "doctor",
    "records", "pictures", "extraction",
    "data", "networks", "scores", "idt", "hmax", "training", "evaluation",
    "report",
)  # fmt: skip

# What a room may take from beyond its door; everything else it gets as records or as scores.
DOORS = {
    "networks": {"errors", "documents", "torch_files", "workers", "records", "data", "own_code"},
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


@cache
def nodes(module: str) -> list[ast.AST]:
    """Every node of a module's syntax tree, the module itself first."""
    return list(ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))))


def imported(module: str) -> list[tuple[str, str]]:
    """What a module imports anywhere in it, for types as well: (module, name in it or "")."""
    found = []
    for node in nodes(module):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


def imports(module: str) -> set[str]:
    """The modules of flowkit that a module imports, as paths below flowkit/.

    A package counts where a name is taken from itself.
    """
    below = set()
    for taken, name in imported(module):
        inner = as_path(f"{taken}.{name}")
        below.add(inner if inner in MODULES else as_path(taken))
    return {name if name in MODULES else f"{name}/__init__" for name in below} & set(MODULES)


def as_path(name: str) -> str:
    """A dotted name below flowkit as the path of its module, without ``.py``."""
    return name.removeprefix("flowkit").lstrip(".").replace(".", "/")


@cache
def graph() -> dict[str, set[str]]:
    """The modules of flowkit that each of them imports, but the public door."""
    return {module: imports(module) - {"__init__"} for module in MODULES}


def test_modules_import_from_their_own_and_lower_packages_only():
    assert [
        f"{module} imports {one}"
        for module, found in graph().items()
        for one in sorted(found)
        if module != "__init__" and floor_of(one) > floor_of(module)
    ] == []


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


def test_no_module_is_needed_by_what_it_needs():
    assert [module for module in MODULES if module in reachable(graph(), module)] == []


def test_rooms_meet_at_their_doors_only():
    passed = []
    for room, known in DOORS.items():
        inside = [name for name in MODULES if name == room or name.startswith(f"{room}/")]
        assert inside
        for module in inside:
            for one in graph()[module] - set(inside):
                if not {one, one.split("/")[0]} & known:
                    passed.append(f"{module} imports {one}")
    assert passed == []


def test_importing_a_package_costs_nothing():
    packages = [name for name in MODULES if name.endswith("__init__")]
    assert len(packages) > 10
    for module in packages:
        tree = nodes(module)[0]
        assert isinstance(tree, ast.Module)
        for node in tree.body:
            if isinstance(node, ast.If):
                assert ast.unparse(node.test) == "TYPE_CHECKING", module
            elif isinstance(node, ast.Import | ast.ImportFrom):
                assert isinstance(node, ast.ImportFrom), f"{module}: {ast.unparse(node)}"
                light = node.module in ("__future__", "importlib", "typing")
                assert light, f"{module}: {ast.unparse(node)}"


def test_the_library_is_silent_and_knows_no_command_line():
    for module, path in MODULES.items():
        called = {
            node.func.id
            for node in nodes(module)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        main = path.read_text(encoding="utf-8").partition('\nif __name__ == "__main__":')[2]
        assert "print" not in called or "print(" in main, module
        assert not {"click", "flowkit_cli"} & {
            taken.split(".")[0] for taken, _ in imported(module)
        }, module


def test_modules_open_with_one_sentence():
    for module in MODULES:
        tree = nodes(module)[0]
        assert isinstance(tree, ast.Module)
        docstring = ast.get_docstring(tree)
        assert docstring and docstring.splitlines()[0].endswith((".", ":")), module


def test_files_are_read_by_the_one_door_that_asks_what_they_are():
    """`documents.read_plain_file` and `open_plain_file`: a pipe would hang, a device never ends."""
    assert set(MODULES) >= READ_DIRECTLY
    for module in set(MODULES) - READ_DIRECTLY:
        called = {
            node.func.attr
            for node in nodes(module)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert not READERS & called, f"{module}: {READERS & called}"
