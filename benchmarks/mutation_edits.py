"""The faults that mutation.py plants: edits of a file's syntax tree, drawn by a seed."""

from __future__ import annotations

import ast
import copy
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARTS = {
    "training": ["training/*.py"],
    "scoring": ["evaluation/scoring.py"],
    "stacks": [f"data/{name}.py" for name in (
        "stacks", "clips", "inputs", "trajectories", "augment", "datasets", "plane_batches")],
    "fusion": ["scores/*.py"],
    "records": ["records/*.py"],
}  # fmt: skip
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
              ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
              ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
              ast.RShift: ast.LShift}  # fmt: skip
COMPARISON = {ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
              ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,),
              ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
              ast.NotIn: (ast.In,)}  # fmt: skip
Edit = tuple[str, ast.AST, ast.AST]  # operator, node, what takes its place


@dataclass(frozen=True)
class Mutant:
    """One edit of one file: bytes `begin` to `end` become `text`."""

    part: str
    path: str
    line: int
    column: int
    operator: str
    old: str
    text: str
    begin: int
    end: int
    reach: tuple[int, ...]  # lines whose tests may see it; empty: all lines of the file

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}:{self.column} {self.operator}: {self.text}"


def changed(node: ast.AST, **fields: object) -> Any:
    """A copy of a node with other fields."""
    other = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def expression_edits(node: ast.AST) -> Iterator[Edit]:
    """Edits of operators, conditions, constants and calls."""
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            texts = (ast.JoinedStr, ast.Constant)  # the / of a path and the + of texts always fail
            if not any(isinstance(side, texts) and not is_number(side) for side in (left, right)):
                yield "arithmetic", node, changed(node, op=ARITHMETIC[type(op)]())
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield "arithmetic", node, operand
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "boolean", node, operand
        case ast.Compare(ops=ops):
            for at, op in enumerate(ops):
                for other in COMPARISON[type(op)]:
                    yield (
                        "comparison",
                        node,
                        changed(node, ops=[*ops[:at], other(), *ops[at + 1 :]]),
                    )
        case ast.BoolOp(op=op):
            yield (
                "boolean",
                node,
                changed(node, op=ast.And() if isinstance(op, ast.Or) else ast.Or()),
            )
        case ast.IfExp(test=test):
            yield "condition", test, ast.UnaryOp(ast.Not(), test)
        case ast.comprehension(ifs=[test, *_]):
            yield "condition", test, ast.UnaryOp(ast.Not(), test)
        case ast.Constant(value=bool(value)):
            yield "constant", node, ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "constant", node, ast.Constant(value + 1)
            if value not in (0, 1):
                yield (
                    "constant",
                    node,
                    ast.Constant(value - 1 if isinstance(value, int) else -value),
                )
        case ast.Constant(value=str(value)) if " " not in value:
            yield "text", node, ast.Constant(f"{value}_" if value else "_")
        case ast.Call(args=args, keywords=keywords):
            for at in range(len(args) - 1):
                pair = [args[at + 1], args[at]]
                if not any(isinstance(arg, ast.Starred) for arg in pair):
                    swapped = [*args[:at], *pair, *args[at + 2 :]]
                    yield "argument swap", node, changed(node, args=swapped)
            for at, keyword in enumerate(keywords):
                if keyword.arg:
                    rest = [*keywords[:at], *keywords[at + 1 :]]
                    yield "argument dropped", node, changed(node, keywords=rest)
        case ast.Slice(lower=lower, upper=upper, step=step):
            for name, bound in (("lower", lower), ("upper", upper), ("step", step)):
                if bound is not None:
                    yield "slice", node, changed(node, **{name: None})


def statement_edits(node: ast.AST) -> Iterator[Edit]:
    """Edits of whole statements."""
    match node:
        case ast.If(test=test) | ast.While(test=test):
            yield "condition", test, ast.UnaryOp(ast.Not(), test)
        case ast.Return(value=value) if value is not None and ast.unparse(value) != "None":
            yield "return", value, ast.Constant(None)
        case ast.Expr(value=ast.Constant()):
            pass
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Delete() | ast.Continue():
            yield "removal", node, ast.Pass()
        case ast.Break() | ast.Assert():
            yield "removal", node, ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "removal", node, ast.Pass()
        case ast.For(iter=over):
            yield "loop", over, ast.Tuple([], ast.Load())
        case ast.ExceptHandler(body=[first, *_]) if not isinstance(first, ast.Raise):
            yield "handler", first, ast.Raise()
        case ast.With(items=[ast.withitem(context_expr=context, optional_vars=None)]):
            nothing = ast.parse("__import__('contextlib').nullcontext()", mode="eval").body
            yield "context", context, nothing


def is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def walk(node: ast.AST, above: tuple[ast.AST, ...] = ()) -> Iterator[tuple[ast.AST, ...]]:
    """Every node that runs, the last of a tuple that begins with the module.

    Left out: annotations and what is for people to read: raised messages, f-strings, help, logs.
    """
    path = (*above, node)
    yield path
    for name, field in ast.iter_fields(node):
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST) and not for_readers(node, name, child):
                yield from walk(child, path)


def for_readers(node: ast.AST, field: str, child: ast.AST) -> bool:
    """Whether a child is an annotation, a name of types only, or text."""
    if field in ("annotation", "returns") or isinstance(child, ast.JoinedStr):
        return True
    if isinstance(node, ast.Raise) or (isinstance(node, ast.keyword) and node.arg == "metadata"):
        return True
    if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
        return True
    if isinstance(child, ast.Assign) and ast.unparse(child.targets[0]) == "__all__":
        return True
    return isinstance(node, ast.Expr) and re.match(r"(log|logging|warnings)\.", ast.unparse(child))


def find_mutants(part: str, path: Path) -> Iterator[Mutant]:
    """All mutants of one file."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for nodes in walk(ast.parse(source)):
        for operator, old, new in (*expression_edits(nodes[-1]), *statement_edits(nodes[-1])):
            begin = starts[old.lineno - 1] + old.col_offset
            end = starts[old.end_lineno - 1] + old.end_col_offset
            text = ast.unparse(ast.fix_missing_locations(new))
            if isinstance(new, ast.expr) and not isinstance(nodes[-1], ast.Slice):
                text = f"({text})"
            yield Mutant(part, str(path.relative_to(path.parents[2])), old.lineno, old.col_offset,
                         operator, source[begin:end].decode(), text, begin, end,
                         reach(nodes))  # fmt: skip


def reach(nodes: tuple[ast.AST, ...]) -> tuple[int, ...]:
    """The lines of the statement of a node; of the function for its defaults; () outside of one."""
    at = max(at for at, node in enumerate(nodes) if isinstance(node, ast.stmt | ast.Module))
    statement = nodes[at]
    inside = any(isinstance(node, ast.FunctionDef) for node in nodes[:at])
    if isinstance(statement, ast.FunctionDef):
        return tuple(range(statement.body[0].lineno, statement.end_lineno + 1))
    if not inside or isinstance(statement, ast.Module):
        return ()
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno
    return tuple(range(statement.lineno, max(statement.lineno, last) + 1))


def draw(tree: Path, seed: int, count: int) -> list[Mutant]:
    """Mutants dealt in turn over operators and parts; a larger count begins with the smaller."""
    cells: dict[str, dict[str, list[Mutant]]] = {}
    for part, patterns in PARTS.items():
        for path in sorted(p for pattern in patterns for p in (tree / "flowkit").glob(pattern)):
            for mutant in find_mutants(part, path):
                cells.setdefault(mutant.operator, {}).setdefault(part, []).append(mutant)
    rng = random.Random(seed)
    decks = {operator: dealt(parts, rng) for operator, parts in sorted(cells.items())}
    drawn = dealt(decks, None)[:count]
    for mutant in drawn:
        compile(mutated(tree, mutant), mutant.path, "exec")
    return drawn


def dealt(decks: dict[str, list[Mutant]], rng: random.Random | None) -> list[Mutant]:
    """One of each deck in turn, each shuffled first where there is a generator."""
    hands = []
    for deck in decks.values():
        hands.append((deck if rng is None else rng.sample(deck, len(deck)))[::-1])
    out = []
    while any(hands):
        out += [hand.pop() for hand in hands if hand]
    return out


def mutated(tree: Path, mutant: Mutant) -> bytes:
    source = (tree / mutant.path).read_bytes()
    return source[: mutant.begin] + mutant.text.encode() + source[mutant.end :]
