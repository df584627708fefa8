"""Downloads from wandb into the cache, with every file's digest checked against the artifact's manifest."""

from __future__ import annotations

import base64
import hashlib
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atlas.errors import InputError
from atlas.registry.artifact_cache import ArtifactCache, Cached, Receipt
from atlas.registry.client import base_url, connect, explained, import_wandb
from atlas.registry.references import ArtifactReference, is_version, parse_artifact
from atlas.system.files import atomic_path, finite
from atlas.system.paths import inside
from atlas.system.progress import progress_bar

logger = logging.getLogger(__name__)

_ATTEMPTS = 3  # per file: a line may drop, and an address is valid only for a while
_CHUNK = 1 << 20
_TIMEOUTS = (10, 60)  # seconds to connect, and between two pieces
_LIST_SECONDS = 120.0  # wandb itself would try for 20 minutes
_WORTH_A_BAR = 20  # MiB


class _Damaged(Exception):
    """A downloaded file is not the one in the manifest."""


def fetch_artifact(reference: str | ArtifactReference) -> Cached:
    """The model that a reference means, from the cache or from wandb; verified.

    A version (`:v3`) in the cache needs no network; only the server knows what an alias points to. Raises InputError if
    there is no such model, no key or no network, or if the files cannot be downloaded undamaged.
    """
    if isinstance(reference, str):
        reference = parse_artifact(reference)
    wandb = import_wandb()
    cache = ArtifactCache(base_url(wandb))
    if reference.is_version and (found := cache.find(reference)) is not None:
        return found
    artifact = _look_up(reference, cache)
    if not is_version(artifact.version):
        raise InputError(f"{reference}: the server calls its version {artifact.version!r}, expected one such as v3.")
    exact = reference.at(artifact.version)
    found = cache.find(exact)
    if found is not None and found.receipt.digest == artifact.digest:
        return found
    with explained(f"{exact} cannot be downloaded"):
        return cache.add(exact, lambda folder: _download(artifact, exact, folder))


def look_up(reference: ArtifactReference, api: Any) -> Any:
    """wandb's Artifact for a reference. Raises InputError that says what there is instead, if it does not exist."""
    from wandb.errors import CommError

    with explained(str(reference)):
        try:
            return api.artifact(reference.path)
        except CommError as error:
            if not isinstance(error.exc, ValueError):  # wandb raises ValueError if there is none
                raise
        raise InputError(f"There is no {reference}.{_what_there_is(reference, api)}")


def _look_up(reference: ArtifactReference, cache: ArtifactCache) -> Any:
    try:
        api = connect()
    except InputError as error:
        if reference.is_version:
            raise InputError(f"{reference} is not in the cache. {error}") from error
        here = cache.versions(reference)
        hint = f" The cache has {', '.join(here)}: name one, such as {reference.at(here[-1])}." if here else ""
        raise InputError(
            f"{reference}: only the server knows which version '{reference.alias}' is now. {error}{hint}"
        ) from error
    return look_up(reference, api)


def _what_there_is(reference: ArtifactReference, api: Any) -> str:
    from atlas.registry.versions import versions_of

    versions = versions_of(reference, api)
    if not versions:
        return f" There is no model {reference.collection}, or this key may not see it."
    known = [f"{version.version} ({', '.join(version.aliases)})" for version in versions[-8:]]
    return f" {reference.collection} has {', '.join(known)}."


def _download(artifact: Any, reference: ArtifactReference, folder: Path) -> Receipt:
    import requests

    entries = _in_time(lambda: artifact.manifest.entries, f"{reference}: the list of its files")
    outside = [name for name, entry in entries.items() if entry.ref is not None]
    if outside:
        raise InputError(
            f"{reference} only refers to files elsewhere ({entries[outside[0]].ref}); get them from there."
        )
    addresses = {file.name: file.direct_url for file in artifact.files(per_page=1000)}
    size = sum(entry.size or 0 for entry in entries.values()) / 2**20
    title = f"Downloading {reference.path} ({size:,.0f} MiB)" if size >= _WORTH_A_BAR else None
    logger.info("Downloading %s (%d files, %.1f MiB)", reference, len(entries), size)
    targets = {name: _target(folder, name, reference) for name in entries}  # checked before anything is written
    sha256 = {}
    with progress_bar(title, max(1, round(size))) as advance, requests.Session() as session:
        meter = _Meter(advance)
        for name, entry in sorted(entries.items()):
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    sha256[name] = _fetch(session, addresses[name], targets[name], entry, meter)
                    break
                except (_Damaged, requests.RequestException, KeyError) as error:
                    if attempt == _ATTEMPTS:
                        raise InputError(
                            f"{reference}: the file {name} cannot be downloaded: {_why(error)}."
                        ) from error
                    logger.warning("%s: downloading %s again: %s", reference, name, _why(error))
                    addresses |= {file.name: file.direct_url for file in artifact.files(names=[name])}
    metadata = finite(dict(artifact.metadata))
    return Receipt(str(reference), artifact.digest, sha256, metadata, artifact.description)


def _target(folder: Path, name: str, reference: ArtifactReference) -> Path:
    where = f"{reference}: the list of its files"
    target = inside(folder, name, where=where)
    if target.relative_to(folder).as_posix() != name:  # two names of one file would each have a digest
        raise InputError(f"{where}: {name!r} is a roundabout name; expected {target.relative_to(folder).as_posix()}.")
    return target


def _in_time(fetch: Callable[[], Any], what: str) -> Any:
    """The result of one of wandb's calls that have no time limit. Raises InputError if it takes too long."""
    done: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()

    def work() -> None:
        try:
            done.put((fetch(), None))
        except Exception as error:
            done.put((None, error))

    threading.Thread(target=work, name="atlas-fetch", daemon=True).start()
    try:
        result, error = done.get(timeout=_LIST_SECONDS)
    except queue.Empty:
        raise InputError(
            f"{what} does not arrive: the server that stores the files does not answer. (A firewall, a proxy?)"
        ) from None
    if error is not None:
        raise error
    return result


class _Meter:
    """Converts bytes into the whole MiB of a progress bar."""

    def __init__(self, advance: Callable[[int], object]) -> None:
        self._advance, self._left = advance, 0

    def add(self, size: int) -> None:
        whole, self._left = divmod(self._left + size, 2**20)
        if whole:
            self._advance(whole)


def _fetch(session: Any, url: str, target: Path, entry: Any, meter: _Meter) -> str:
    """Download one file; returns its SHA-256. Raises _Damaged, and keeps nothing, if it is not what the manifest says.

    Downloading stops at the first byte beyond the size in the manifest.
    """
    digest, sha256, size = _hasher(entry), hashlib.sha256(), 0
    with session.get(url, stream=True, timeout=_TIMEOUTS) as response, atomic_path(target) as partial:
        response.raise_for_status()
        with partial.open("wb") as file:
            for chunk in response.iter_content(_CHUNK):
                size += len(chunk)
                if entry.size is not None and size > entry.size:
                    raise _Damaged(f"more than the manifest's {entry.size:,} bytes come")
                file.write(chunk)
                digest.update(chunk)
                sha256.update(chunk)
                meter.add(len(chunk))
        if entry.size not in (None, size):
            raise _Damaged(f"{size:,} bytes came, but the manifest says {entry.size:,}")
        if base64.b64encode(digest.digest()).decode() != entry.digest:
            raise _Damaged(f"{size:,} bytes came, but their digest is not the manifest's")
    return sha256.hexdigest()


def _hasher(entry: Any) -> Any:
    """A hasher of the same kind as the manifest's digest of a file."""
    if "XXH128" in entry.digest_algorithm().name:
        import xxhash

        return xxhash.xxh128()
    return hashlib.md5(usedforsecurity=False)


def _why(error: Exception) -> str:
    """A reason without the file's address, with which any reader could download the file."""
    if isinstance(error, _Damaged):
        return str(error)
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code}"
    return "the server does not list it" if isinstance(error, KeyError) else type(error).__name__
