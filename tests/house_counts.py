"""Rooms, arrows, floors and circles of flowkit's import graph, by packages and by modules.

    python tests/house_counts.py

A room is a package (a module of the ground floor, which lies in none, is a room of its own), an
arrow an import from one room by another. A floor holds what needs only floors below it. What lies
in a circle needs itself. Arrows that run up go against ORDER of tests/test_house.py.
"""

from __future__ import annotations

from test_house import floor_of, graph, reachable

Graph = dict[str, set[str]]


def packages(modules: Graph) -> Graph:
    """The same imports between packages."""
    rooms: Graph = {}
    for module, imported in modules.items():
        room = room_of(module)
        rooms.setdefault(room, set()).update(room_of(name) for name in imported)
    return {room: others - {room} for room, others in rooms.items()}


def room_of(module: str) -> str:
    """The package of a module, or a module that lies in none."""
    return module.rpartition("/")[0] or module


def circles(graph: Graph) -> list[list[str]]:
    """The groups of rooms that need each other."""
    needs = {room: reachable(graph, room) for room in graph}
    groups = {
        tuple(sorted(other for other in needs[room] if room in needs[other]))
        for room in graph
        if room in needs[room]
    }
    return [list(group) for group in sorted(groups)]


def floors(graph: Graph) -> list[list[str]]:
    """The rooms by floor, the lowest first; those of a circle and above it lie on none."""
    left, built, found = set(graph), set(), []
    while floor := sorted(room for room in left if graph[room] <= built):
        found.append(floor)
        left -= set(floor)
        built |= set(floor)
    return found


def counts(graph: Graph) -> str:
    """The figures in a line."""
    arrows = sum(map(len, graph.values()))
    return (
        f"{len(graph)} rooms, {len(floors(graph))} floors, {arrows} arrows, "
        f"{len(circles(graph))} circles"
    )


def main() -> None:
    modules = {name: found for name, found in graph().items() if not name.endswith("__init__")}
    modules = {name: found & modules.keys() for name, found in modules.items()}
    rooms = packages(modules)
    up = sum(floor_of(one) > floor_of(name) for name in modules for one in modules[name])
    print(f"packages: {counts(rooms)}")
    print(f"modules: {counts(modules)}; {up} arrows run up")
    for number, floor in enumerate(floors(rooms)):
        print(f"floor {number}: {', '.join(floor)}")
    for circle in circles(rooms):
        print(f"circle of packages: {', '.join(circle)}")
    for circle in circles(modules):
        print(f"circle of modules: {', '.join(circle)}")


if __name__ == "__main__":
    main()
