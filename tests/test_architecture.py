"""Who may import whom (DESIGN section 3), what stays free of torch, and where things live."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "draftwood"

# Top imports bottom, never the reverse; those on one line do not import each other.
LEVELS = (
    ("cli",),
    ("server", "bench", "training"),
    ("engine",),
    ("text",),
    ("prefill", "decode", "planner"),
    ("models",),
    ("layers",),
    ("cache",),
    ("kernels",),
    ("formats",),
    ("batch", "buffers", "errors"),
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
# Stricter than its level.
ONLY = {"text": {"formats", "errors"}}
# The package's face may name anything, since it imports on first use.
FACE = {"draftwood", "draftwood.__main__"}

MODULES = sorted(PACKAGE.rglob("*.py"))
TORCH_FREE = [
    "draftwood",
    "draftwood.errors",
    "draftwood.cache.registry",
    "draftwood.cli.main",
    "draftwood.decode.drafters.registry",
    "draftwood.decode.params",
    "draftwood.decode.stats",
    "draftwood.engine.fetch",
    "draftwood.engine.request",
    "draftwood.engine.sources",
    "draftwood.formats.gguf_writer",
    "draftwood.models.draft_spec",
    "draftwood.models.known",
    "draftwood.models.llama",
    "draftwood.models.qwen3",
    "draftwood.models.qwen35",
    "draftwood.models.registry",
    "draftwood.models.synthetic",
]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of all of ours that a module imports, also inside functions or for typing."""
    module = name_of(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            if is_ours(base):
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def is_ours(name: str) -> bool:
    return name == "draftwood" or name.startswith("draftwood.")


def forbidden(importer: str, imported: str) -> str | None:
    """Why a module may not import another; None if it may."""
    ours, theirs = importer.split(".")[1], imported.split(".")[1]
    if theirs == "__version__" or ours == theirs:
        return None
    if theirs not in LEVEL_OF:
        return f"imports {imported} through the package's face"
    if ours in ONLY and theirs not in ONLY[ours]:
        return f"imports {imported}, but {ours} imports {' and '.join(sorted(ONLY[ours]))} only"
    if LEVEL_OF[theirs] == LEVEL_OF[ours]:
        return f"imports its sibling {imported}"
    return f"imports upward, {imported}" if LEVEL_OF[theirs] < LEVEL_OF[ours] else None


def test_every_folder_has_a_level() -> None:
    folders = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}
    assert folders - {"__init__", "__main__"} <= set(LEVEL_OF)


def test_imports_only_downward() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {reason}"
        for path in MODULES
        if name_of(path) not in FACE
        for line, imported in imports(path)
        if (reason := forbidden(name_of(path), imported))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "imported", "fragment"),
    [
        ("draftwood.cache.kv", "draftwood.models.base.Model", "upward"),
        ("draftwood.bench.report", "draftwood.server.app", "sibling"),
        ("draftwood.decode.round", "draftwood.prefill.dense", "sibling"),
        ("draftwood.text.stream", "draftwood.models.spec", "only"),
        ("draftwood.cache.kv", "draftwood.Engine", "face"),
        ("draftwood.engine.engine", "draftwood.text.stream", None),
        ("draftwood.bench.report", "draftwood.__version__", None),
    ],
)
def test_the_rules_themselves(importer: str, imported: str, fragment: str | None) -> None:
    reason = forbidden(importer, imported)
    assert reason is None if fragment is None else fragment in (reason or "")


def without_torch(code: str, *arguments: str) -> str:
    """Run code in a process where importing torch fails; returns its stdout."""
    blocked = f"import sys; sys.modules['torch'] = None\n{code}"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", blocked, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_these_modules_import_without_torch() -> None:
    planner = [name_of(path) for path in MODULES if path.parent.name == "planner"]
    buffers = [name_of(path) for path in MODULES if path.name == "buffers.py"]
    names = [*TORCH_FREE, *planner, *buffers]
    imported = without_torch(
        "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name); print(name)", *names
    )
    assert imported.split() == names


def test_help_needs_no_torch() -> None:
    pytest.importorskip("typer")
    code = """
from draftwood.cli.main import main
for name in sys.argv[1:]:
    assert main([*name.split(), "--help"]) == 0
"""
    benches = ("bench", "bench he", "bench kv", "bench round", "bench baseline", "bench ctx", "bench guide")
    commands = ("", "run", "chat", "pull", *benches, "doctor", "demo", "plan", "synth", "train")
    shown = without_torch(code, *commands)
    assert shown.count("Usage: draftwood") == len(commands)


def test_tests_mirror_the_package() -> None:
    folders = [path for path in (ROOT / "tests").rglob("*") if path.is_dir() and any(path.glob("test_*.py"))]
    missing = [
        str(path.relative_to(ROOT)) for path in folders if not (PACKAGE / path.relative_to(ROOT / "tests")).is_dir()
    ]
    assert not missing


def test_no_drawer_for_everything() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert not [path for path in MODULES if drawers & set(path.relative_to(ROOT).with_suffix("").parts)]


def test_no_place_of_one_machine_is_named() -> None:
    pattern = re.compile(r"""["'(\s=](/(?:tmp|work|root|home|farm|opt)/[A-Za-z])""")
    files = [path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".toml", ".md", ".html", ".js"}]
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in [*files, ROOT / "Makefile", ROOT / "pyproject.toml"]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_vendored_data_stays_small() -> None:
    total = sum(path.stat().st_size for path in (ROOT / "tests" / "data").rglob("*") if path.is_file())
    assert total <= 8 << 20
