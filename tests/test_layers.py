"""Imports point one way, in the package and in scripts/, and `import mixfast` needs torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "mixfast").rglob("*.py"))
# A file imports from its own row or an earlier one.
LAYERS = (
    ("drawing", "errors", "files", "outside", "ranges", "rng", "spans", "world"),
    ("ops",),
    ("losses",),
    ("models",),
    ("augment",),
    ("mix",),
    ("data",),
    ("methods",),
    ("adapters",),
    ("scoring",),
    ("detection",),
    ("config",),
    ("run",),
    ("formats",),
    ("export", "initial_weights"),
    ("evaluate",),
    ("train",),
    ("compare",),
    ("profile", "doctor", "__main__"),
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def layer_of(module: str) -> int:
    if module == "mixfast":  # re-exports the operations
        return 1
    name = module.split(".")[1]
    found = [number for number, layer in enumerate(LAYERS) if name in layer]
    assert found, f"{module}: name {name} in LAYERS"
    return found[0]


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """The modules of mixfast that a file imports, also inside functions unless `top_level`."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = members & MODULES
            found |= modules | ({str(node.module)} if members - modules else set())
    return {name for name in found if name.split(".")[0] == "mixfast"}


def test_imports_point_one_way() -> None:
    later = {}
    for path in FILES:
        module = module_of(path)
        found = imports(path, top_level=module == "mixfast")  # for type checkers it names what it imports later
        later[module] = sorted(name for name in found if layer_of(name) > layer_of(module))
    assert not (wrong := {module: names for module, names in later.items() if names}), f"from later layers: {wrong}"


def scripts_graph() -> dict[str, set[str]]:
    """The scripts that each script imports, also inside functions: they import each other by their bare names."""
    paths = {path.stem: path for path in (ROOT / "scripts").glob("*.py")}
    graph = {}
    for name, path in paths.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        found |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        graph[name] = found & paths.keys()
    return graph


def test_no_cycles() -> None:
    graph = {module_of(path): imports(path, top_level=True) - {module_of(path)} for path in FILES} | scripts_graph()
    while leaves := {name for name, needs in graph.items() if not needs}:
        graph = {name: needs - leaves for name, needs in graph.items() if name not in leaves}
    assert not graph, f"these import each other: {graph}"


@pytest.mark.slow
def test_import_and_a_list_of_backends_are_light() -> None:
    """Of which the list says what is not installed."""
    code = """
import sys, torch
before = set(sys.modules)
import mixfast
mixfast.backends()
heavy = {name.split(".")[0] for name in set(sys.modules) - before}
heavy &= {"tyro", "rich", "torchvision", "matplotlib", "PIL", "triton", "safetensors", "tensorboard"}
assert not heavy, heavy
sys.modules["triton"] = None  # as if it were not installed
for listed in mixfast.backends().values():
    assert listed.get("triton") in (None, "the package triton is not installed"), listed
assert mixfast.backends()["nt_xent"]["triton"] is not None
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
