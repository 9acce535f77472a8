"""The floor plan in CONTRIBUTING.md is the code's: imports point down in it, and never go round."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "facerec").rglob("*.py"))}


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker sees."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from nodes(child)


def imported(name: str) -> set[str]:
    """The modules of facerec that a module imports, at its top or within a function."""
    found: set[str] = set()
    for node in nodes(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {one if one in MODULES else node.module for one in whole}
    return found & MODULES.keys() - {"facerec"}


IMPORTS = {name: imported(name) for name in MODULES}


def room(name: str) -> str:
    """The folder of a module right below facerec/; ``*.py`` for the files there."""
    parts = name.split(".")
    return parts[1] if MODULES[name].parent != ROOT / "facerec" else "*.py"


def floors() -> dict[str, int]:
    """The floor of each room, out of the table in CONTRIBUTING.md."""
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## The floor plan\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| ([^|]+)\|", table, re.MULTILINE)
    return {
        place: int(floor) for floor, places in rows for place in re.findall(r"`facerec/([\w*.]+)/?`", places)
    }


def test_every_room_is_in_the_plan_and_has_something_in_it() -> None:
    assert {room(name) for name in MODULES} == set(floors())


def test_imports_point_down() -> None:
    floor = floors()
    upward = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if room(name) != room(other) and floor[room(other)] >= floor[room(name)]
        if name != "facerec"  # the names of the API, on first use
    ]
    assert not upward, "\n".join(upward)


def test_imports_never_go_round() -> None:
    assert list(TopologicalSorter(IMPORTS).static_order())


def test_former_names_of_modules_lead_to_their_homes_and_warn() -> None:
    sys.modules.pop("facerec.data", None)
    with pytest.warns(FutureWarning, match="facerec.images and facerec.packs"):
        former = importlib.import_module("facerec.data.decode")
    assert former.decode is importlib.import_module("facerec.images.decode").decode
    sets = importlib.import_module("facerec.data.verification")
    assert sets.load_verification is importlib.import_module("facerec.packs.verification").load_verification


def test_listings_name_what_can_be_created() -> None:
    import facerec

    assert {"arcface", "sface"} <= set(facerec.list_heads()) and facerec.list_heads("arcf*") == ["arcface"]
    assert "mobilefacenet" in facerec.list_backbones() and not facerec.list_backbones("nothing*")
    assert {"ir_50", "ir_101"} <= set(facerec.list_backbones("ir_*")) < set(facerec.list_backbones())
    facerec.create_backbone(facerec.list_backbones("mobilef*")[0], embedding_size=8)


def test_types_travel_with_the_package() -> None:
    assert (ROOT / "facerec" / "py.typed").is_file()
