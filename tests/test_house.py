"""The rules of the house, read off the files: who may include whom, where assembly may be, how long a file
may be.
"""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import lowbit.ops
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".cuh", ".cpp", ".cu"))
PYTHON = sorted((ROOT / "python").rglob("*.py"))
TESTS = sorted(p for folder in ("tests", "bench") for p in (ROOT / folder).rglob("*.py"))

# folder -> folders whose headers it may include, besides its own
MAY_INCLUDE = {
    "numeric": set(),
    "layout": {"numeric"},
    "emu": {"numeric", "layout"},
    "ptx": {"numeric", "layout", "emu"},
    "kernels": {"ptx", "layout", "numeric"},
    "cpu": {"layout", "numeric"},
    "ops": {"kernels", "cpu", "layout", "numeric"},
}
LINES = {".h": 450, ".cuh": 450, ".cpp": 450, ".cu": 450}


def relative(path):
    return str(path.relative_to(ROOT))


def room(path):
    return path.relative_to(CSRC).parts[0]


def quoted_includes(path):
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE)


def angle_includes(path):
    return re.findall(r"^\s*#\s*include\s+<([^>]+)>", path.read_text(), re.MULTILINE)


def without_comments(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def has_reason(path):
    """Past a budget, the README of the family names the file and says why."""
    return any(path.name in readme.read_text() for readme in (path.parent / "README.md",) if readme.exists())


def test_the_top_level_is_what_the_design_names():
    git = shutil.which("git")
    if not git or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {".ci", "bench", "cmake", "csrc", "docs", "python", "tests", "third_party"}
    files = {".clang-format", ".gitignore", "CMakeLists.txt", "LICENSE", "Makefile", "README.md"}
    files |= {"constraints.txt", "pyproject.toml", "setup.py"}
    assert {name.split("/")[0] for name in listed.splitlines()} <= folders | files


def test_there_is_something_to_check():
    assert len(SOURCES) >= 15 and len(PYTHON) >= 15
    assert {room(p) for p in SOURCES} <= set(MAY_INCLUDE)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_includes_point_one_way(path):
    for name in quoted_includes(path):
        target = (path.parent / name).resolve()
        if not target.exists():
            target = (CSRC / name).resolve()
        assert target.exists(), f'{relative(path)} includes "{name}", which is not in csrc'
        allowed = MAY_INCLUDE[room(path)] | {room(path)}
        assert room(target) in allowed, (
            f"{relative(path)} includes {relative(target)}, allowed are {sorted(allowed)}"
        )


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_torch_only_in_ops(path):
    if room(path) != "ops":
        mentions = [n for n in angle_includes(path) if re.match(r"(torch|ATen|c10|pybind11)/", n)]
        assert not mentions, f"{relative(path)} includes {mentions}"
    else:
        unstable = [
            n for n in angle_includes(path) if re.match(r"(ATen|c10)/|torch/(torch|extension|library)\.h", n)
        ]
        assert not unstable, f"{relative(path)} includes {unstable}, which are outside the stable ABI"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_assembly_only_in_ptx(path):
    if room(path) != "ptx":
        assert not re.search(r"\b(asm|__asm__|__asm)\b", without_comments(path.read_text())), relative(path)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_intrinsics_in_ops(path):
    if room(path) == "ops":
        assert not re.search(r"\b_mm\d*_|immintrin", path.read_text()), relative(path)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_source_budget(path):
    lines = path.read_text().splitlines()
    limit = LINES[path.suffix]
    assert len(lines) <= limit or has_reason(path), f"{relative(path)} has {len(lines)} lines, budget {limit}"
    long = [i for i, line in enumerate(lines, 1) if len(line) > 120]
    assert not long, f"{relative(path)}: lines {long} pass 120 columns"


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_python_budget(path):
    lines = path.read_text().count("\n")
    assert lines <= 400, f"{relative(path)} has {lines} lines, budget 400"


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_test_budget(path):
    lines = path.read_text().count("\n")
    assert lines <= 600, f"{relative(path)} has {lines} lines, budget 600"


def test_depth():
    deep = [relative(p) for p in SOURCES if len(p.relative_to(CSRC).parts) > 3]
    assert not deep


def test_the_oracle_stands_alone():
    for name in ("attention", "cases", "codec", "compare", "fused", "hadamard", "ops"):
        text = (ROOT / f"tests/oracle/{name}.py").read_text()
        found = re.findall(r"^\s*(?:import|from)\s+(\S+)", text, re.MULTILINE)
        assert not [n for n in found if n.split(".")[0] in ("lowbit", "torch")], name


LIBRARY = [p for p in PYTHON if "cli" not in p.parts]


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module has none"
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    missing = [node.name for node in public if not ast.get_docstring(node)]
    assert not missing


def test_every_op_is_documented():
    text = (ROOT / "docs/ops.md").read_text()
    for name in lowbit.ops.NAMES:
        assert re.search(rf"^### `{name}\(", text, re.MULTILINE), f"docs/ops.md has no section for {name}"
    for name in lowbit.ops.NAMES:  # the sections carry the registered argument names, in order
        schema = getattr(torch.ops.lowbit, name).default._schema
        heading = re.search(rf"^### `{name}\((.*?)\)", text, re.MULTILINE).group(1)
        assert [a.split("=")[0].strip() for a in heading.split(",")] == [a.name for a in schema.arguments], (
            name
        )


def test_ruff_is_clean():
    ruff = shutil.which("ruff") or str(Path(sys.executable).with_name("ruff"))
    if not Path(ruff).exists():
        pytest.skip("ruff is not installed")
    result = subprocess.run(
        [ruff, "check", "--output-format", "concise", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-1500:]
