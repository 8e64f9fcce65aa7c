"""From a name to a file: whole or not at all, whatever goes wrong on the way.  Pip is a script of ours."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from draftwood.engine import fetch
from draftwood.errors import DownloadError, DraftwoodError, FileError, UsageError

pytest.importorskip("filelock")
pytest.importorskip("rich")

ROOT = Path(__file__).resolve().parents[2]
CONTENT = b"not really a model" * 1000
ENTRY = fetch.Entry(
    name="toy",
    about="a toy",
    source="pypi",
    package="toy-package",
    version="1.0",
    member="toy/model.gguf",
    file="toy.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    download_size=len(CONTENT),
)
DRAFTS = {"toy": fetch.Entry("toy", "its draft", fetch.PACKAGE, "toy-draft.gguf")}
# Called as `PYTHON -m pip download ... --dest FOLDER PACKAGE`.
FAKE_PIP = """\
#!{python}
import os, sys, time, zipfile
here = {here!r}
with open(here + "/calls", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
mode = open(here + "/mode").read()
if mode == "fail":
    print("Looking in indexes")
    print("ERROR: Could not find a version " + "x" * 500, file=sys.stderr)
    sys.exit(1)
open(os.environ["TMPDIR"] + "/half", "wb").write(b"half")
if mode == "hang":
    time.sleep(60)
time.sleep(0.2)
folder = sys.argv[sys.argv.index("--dest") + 1]
content = b"not really a model" * 1000
content = {{"short": content[:-1], "wrong": b"x" + content[1:]}}.get(mode, content)
if mode != "nothing":
    with zipfile.ZipFile(folder + "/toy.whl", "w") as wheel:
        wheel.writestr("toy/other.gguf" if mode == "misses" else "toy/model.gguf", content)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and a registry with one entry."""
    path = tmp_path / "cache"
    monkeypatch.setenv("DRAFTWOOD_CACHE", str(path))
    monkeypatch.setattr(
        fetch, "registry", lambda table=fetch.FILES: {fetch.FILES: {"toy": ENTRY}, fetch.DRAFTS: DRAFTS}[table]
    )
    return path


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what the fake pip does: ok, fail, hang, short, wrong, misses, nothing."""
    script = tmp_path / "python"
    script.write_text(FAKE_PIP.format(python=sys.executable, here=str(tmp_path)))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))

    def set_mode(mode: str) -> None:
        (tmp_path / "mode").write_text(mode)

    return set_mode


def files(cache: Path) -> set[str]:
    """What is in the cache besides locks, which are empty and stay."""
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


def test_fetch_then_cache(cache: Path, pip: Callable[[str], None], tmp_path: Path) -> None:
    pip("ok")
    assert fetch.cached("toy") is None
    path = fetch.resolve("toy")
    assert path == cache / "toy.gguf" and path.read_bytes() == CONTENT
    assert files(cache) == {"toy.gguf"}
    pip("fail")
    assert fetch.resolve("toy") == path
    [call] = (tmp_path / "calls").read_text().splitlines()
    assert "--no-deps" in call and call.endswith("toy-package==1.0")


@pytest.mark.parametrize(
    ("mode", "fragment"),
    [
        ("fail", "Could not find a version"),
        ("short", f"{len(CONTENT) - 1} bytes where {len(CONTENT)}"),
        ("wrong", "SHA-256"),
        ("misses", "without a readable toy/model.gguf"),
        ("nothing", "without a readable toy/model.gguf"),
    ],
)
def test_failures_leave_nothing_and_can_be_tried_again(
    mode: str, fragment: str, cache: Path, pip: Callable[[str], None]
) -> None:
    pip(mode)
    with pytest.raises(DownloadError, match="draftwood pull toy") as caught:
        fetch.resolve("toy")
    assert fragment in str(caught.value) and len(str(caught.value)) < 280
    assert files(cache) == set()
    pip("ok")
    assert fetch.resolve("toy").read_bytes() == CONTENT


def test_what_a_killed_fetch_left_is_removed(cache: Path, pip: Callable[[str], None]) -> None:
    leftover = cache / ".toy.partial"
    (leftover / "scratch").mkdir(parents=True)
    (leftover / "toy.gguf").write_bytes(b"half")
    pip("ok")
    assert fetch.resolve("toy").read_bytes() == CONTENT
    assert files(cache) == {"toy.gguf"}


def test_a_truncated_file_does_not_count_as_cached(cache: Path, pip: Callable[[str], None]) -> None:
    cache.mkdir()
    (cache / "toy.gguf").write_bytes(CONTENT[:100])
    pip("ok")
    assert fetch.resolve("toy").read_bytes() == CONTENT


def test_pull_mends_a_file_of_the_right_size(cache: Path, pip: Callable[[str], None]) -> None:
    cache.mkdir()
    (cache / "toy.gguf").write_bytes(b"x" * len(CONTENT))
    pip("ok")
    assert fetch.resolve("toy").read_bytes() != CONTENT
    assert fetch.pull("toy").read_bytes() == CONTENT


def test_ctrl_c_kills_the_download_and_cleans_up(
    cache: Path, pip: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pip("hang")
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def wait(self, timeout: float | None = None) -> int:
            started.append(self)
            if timeout is not None and (cache / ".toy.partial" / "scratch" / "half").exists():
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch.resolve("toy")
    assert files(cache) == set()
    assert started[0].returncode is not None, "the download is still running"


def test_two_at_once_fetch_once(
    cache: Path, pip: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pip("ok")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch.resolve("toy"))) for _ in range(2)]
    threads[0].start()
    while not (tmp_path / "calls").exists():
        time.sleep(0.01)
    threads[1].start()
    for thread in threads:
        thread.join(timeout=20)
    assert found == [cache / "toy.gguf"] * 2
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
    assert "waiting" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written(
    pip: Callable[[str], None], cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pip("ok")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DRAFTWOOD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DownloadError, match="DRAFTWOOD_CACHE"):
        fetch.resolve("toy")


def test_an_existing_path_is_returned_as_it_is(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"")
    assert fetch.resolve(file) == file
    assert fetch.resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "error", "fragment"),
    [
        ("nobody", UsageError, "the known names are toy"),
        ("folder/model", FileError, "no such file: folder/model"),
        ("model.gguf", FileError, "no such file: model.gguf"),
        (Path("model"), FileError, "no such file: model"),
        ("gopher://host/model.gguf", UsageError, "is an address"),
        ("hf:owner", UsageError, "hf:OWNER/REPO/FILE"),
        ("hf:owner/repo", UsageError, "does not name a file"),
        ("hf:owner/repo/", UsageError, "does not name a file"),
        ("~nobody-of-this-name", UsageError, "neither a file nor a known name"),
        ("a\0b", UsageError, "neither a file nor a known name"),
        ("n" * 2000, UsageError, "neither a file nor a known name"),
    ],
)
def test_names_that_lead_nowhere(name: str | Path, error: type[DraftwoodError], fragment: str, cache: Path) -> None:
    with pytest.raises(error) as caught:
        fetch.resolve(name)
    assert fragment in str(caught.value) and len(str(caught.value)) < 280
    assert not cache.exists()


def test_registry_entries_can_be_fetched() -> None:
    entries = fetch.registry()
    assert set(entries) >= {"demo", "humaneval"}
    for entry in entries.values():
        assert entry.source in fetch._SOURCES
        assert len(entry.sha256) == 64 and entry.size > 0
        assert Path(entry.file).name == entry.file


def test_shipped_drafts_are_named_like_their_targets() -> None:
    for name, entry in fetch.registry(fetch.DRAFTS).items():
        assert name in fetch.registry() and entry.source == fetch.PACKAGE
        assert entry.place == ROOT / "draftwood" / "drafts" / entry.file


def test_a_draft_of_this_package(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "drafts_dir", lambda: tmp_path / "drafts")
    assert fetch.cached("toy", fetch.DRAFTS) is None and fetch.default_draft("toy") == "lookup"
    with pytest.raises(FileError, match=r"lacks toy-draft\.gguf.*install it again"):
        fetch.resolve("toy", fetch.DRAFTS)
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts" / "toy-draft.gguf").write_bytes(b"draft")
    assert fetch.resolve("toy", fetch.DRAFTS).read_bytes() == b"draft"
    assert fetch.cached("toy", fetch.DRAFTS) == tmp_path / "drafts" / "toy-draft.gguf"
    assert fetch.default_draft("toy") == "toy" and fetch.default_draft("toy.gguf") == "lookup"
    with pytest.raises(UsageError, match="the known names are toy, lookup, "):
        fetch.resolve("nobody", fetch.DRAFTS)
    assert not cache.exists()


class Hub(BaseHTTPRequestHandler):
    """Serves `owner/repo/parts/m-0000N-of-00002.gguf` the way the hub does."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        body = self.path.encode()
        if not self.path.startswith("/owner/repo/resolve/main/parts/m-"):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "/owner/" in self.path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_hub_files(hub: str, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    # A process of its own: the hub's client reads its settings once, when it is imported.
    code = (
        "import sys\n"
        "from draftwood.engine.fetch import resolve\n"
        "from draftwood.errors import DraftwoodError\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(resolve(name))\n"
        "    except DraftwoodError as error: print(type(error).__name__, error)\n"
    )
    names = ["hf:owner/repo/parts/m-00001-of-00002.gguf", "hf:owner/repo/none.gguf", "hf:nobody/repo/x.gguf"]
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code, *names],
        cwd=ROOT,
        env={**environment, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, no_file, no_repo = ran.stdout.splitlines()
    assert Path(first).read_text().endswith("m-00001-of-00002.gguf")
    assert Path(first.replace("00001-of", "00002-of")).read_text().endswith("m-00002-of-00002.gguf")
    assert no_file.startswith("DownloadError repository owner/repo has no file none.gguf")
    assert no_repo.startswith("DownloadError the hub has no repository nobody/repo")


def test_torch_is_not_imported() -> None:
    code = "import sys; sys.modules['torch'] = None; import draftwood.engine.fetch"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
