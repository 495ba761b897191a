"""The house rules of CONTRIBUTING.md as tests: who imports whom, sizes, prints, shapes."""

import ast
import importlib
import re
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
ROOMS = ("simulator", "envs", "recon3d", "probes")
LEAVES = ("recon3d.cameras", "recon3d.sweeps", "recon3d.torchvision_operators")
POINTERS = (
    "probes.subjects",
    "probes.probe",
    "probes.demo",
    "probes.bench",
    "probes.scenes_bench",
    "probes.task_scores",
    "probes.tasks",
    "probes.framing",
    "probes.train_checker",
    "probes.eval_captions",
)
MAY_IMPORT = {"simulator": set(), "envs": {"simulator"}, "recon3d": set(), "probes": {"recon3d"}}
FILE_LINES, FUNCTION_LINES = 480, 72  # about 400 and about 60, with a fifth of slack

FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
PARSED = {path: ast.parse(path.read_text()) for path in FILES}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def own_imports(tree: ast.AST, importer: str) -> set[str]:
    """The modules of our packages that a piece of code imports, by full name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(importer.split(".")[: -node.level]) if node.level else ""
            name = ".".join(filter(None, (base, node.module)))
            inner = {f"{name}.{alias.name}" for alias in node.names}
            found |= {full for full in inner if full in MODULES} or {name}
    return {name for name in found if name.split(".")[0] in (*ROOMS, "orrery", "tests", "notebooks")}


MODULES = {module_of(path) for path in FILES}
IMPORTS = {module_of(path): own_imports(tree, module_of(path)) for path, tree in PARSED.items()}


def allowed(importer: str, imported: str) -> bool:
    room, other = importer.split(".")[0], imported.split(".")[0]
    if imported in LEAVES:
        return True
    if importer in LEAVES:
        return False
    if importer in POINTERS and other in ("envs", "simulator"):
        return True
    return other == room or other in MAY_IMPORT[room]


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_a_module_imports_only_what_its_room_may(module):
    broken = [name for name in IMPORTS[module] if not allowed(module, name)]
    assert not broken, f"{module} may not import {broken}; see CONTRIBUTING.md"


def test_imports_have_no_cycle():
    done, trail = set(), []

    def visit(module):
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            trail.append(module)
            for imported in sorted(IMPORTS.get(module, ())):
                visit(imported)
            done.add(trail.pop())

    for module in sorted(IMPORTS):
        visit(module)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_our_packages_are_imported_at_the_top_of_a_file(path):
    functions = [n for n in ast.walk(PARSED[path]) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {name for function in functions for name in own_imports(function, module_of(path))}
    assert not inner, f"{path.name} imports {inner} inside a function"


@pytest.mark.parametrize("path", [*FILES, ROOT / "orrery.py"], ids=lambda path: path.stem)
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES, f"{path.name}: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{path.name}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_bare_except_and_no_print_in_libraries(path):
    """Only a command, a function that returns an exit code, may print its result; warnings go to stderr."""
    tree = PARSED[path]
    assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.type is None]
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    commands = [f for f in functions if f.returns is not None and ast.unparse(f.returns) == "int"]
    spoken = {id(node) for function in commands for node in ast.walk(function)}
    prints = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "print"
        and id(node) not in spoken
        and not any(keyword.arg == "file" for keyword in node.keywords)
    ]
    assert not prints, f"{path.name} prints in lines {prints}; return the text to the command"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_every_module_says_what_it_is(path):
    assert path.stat().st_size == 0 or ast.get_docstring(PARSED[path]), f"{path.name} has no docstring"


def test_packages_import_without_their_contents():
    for room in ("simulator", "recon3d", "probes"):
        assert (ROOT / room / "__init__.py").stat().st_size == 0, f"{room}/__init__.py must be empty"


def empty_world():
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    return model, mujoco.MjData(model)


WRONG_SHAPES = {
    "simulator": ("simulator.video", "to_uint8", lambda: (torch.zeros(5),)),
    "recon3d": ("recon3d.cameras", "rigid_inverse", lambda: (torch.zeros(4, 4),)),
    "probes": ("probes.measurement", "mean_interval", lambda: (np.zeros((2, 2)),)),
    "envs": ("envs.marks", "find_spot", lambda: (*empty_world(), np.zeros((2, 2), int), *np.zeros((2, 3)))),
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_wrong_shape_is_an_error(room, request):
    if "beartype" not in str(request.config.getoption("--jaxtyping-packages")):
        pytest.skip("run with --jaxtyping-packages (pyproject.toml sets it)")
    module, function, arguments = WRONG_SHAPES[room]
    with pytest.raises(Exception) as caught:
        getattr(importlib.import_module(module), function)(*arguments())
    assert "TypeCheck" in type(caught.value).__name__ or "CallHint" in type(caught.value).__name__


def test_readme_commands_exist():
    """Every `orrery COMMAND` that the README shows is a command of the front door."""
    commands = importlib.import_module("orrery").COMMANDS
    text = (ROOT / "README.md").read_text()
    shown = set(
        re.findall(r"(?:^|`|bin/)orrery ([a-z]+(?: (?:tokenizer|world|captioner|captions))?)", text, re.M)
    )
    unknown = {name for name in shown if name not in commands and name != "train"}
    assert not unknown, f"README.md shows {unknown}"


def test_readme_gives_numbers():
    """The README's tables of results hold numbers, not promises."""
    text = (ROOT / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|") and re.search(r"\d+\.\d", line)]
    assert len(rows) >= 5, "README.md has no table of measured results"
    assert not re.search(r"\b(TODO|TBD|XXX)\b|\{\{", text), "README.md has a gap to fill"
