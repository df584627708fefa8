"""Whether a damaged or malicious file is always refused: files of every format, changed at random and read.

    python benchmarks/fuzz.py [--mutations 20000] [--seed 0] [--only NUMBER] [--subjects WORD ...]

Each mutation changes one file of a small example (bits, cuts, insertions, deletions, pieces of other files, extreme
numbers, words of a text), and the product's own code opens and reads it, in a separate process that may take 5 s of
processor time and 2 GiB beyond what it began with. It should succeed or end with an InputError. Prints a table by
format and the other endings, each with the number that repeats it (`--only`, with the same seed); the exit code is 1 if
there is one. Linux only.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import random
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from fuzz_mutations import mutate
from fuzz_subjects import ROOT, SUBJECTS, Subject

from atlas.errors import InputError
from atlas.system import manifest

SECONDS = 5  # of processor time, per mutation
PATIENCE = 120.0  # of wall-clock time, if something else keeps the processors busy
MEMORY = 2 * 2**30
LIFE = 500  # mutations after which a worker is replaced, so that leaks do not grow
KINDS = ("ok", "InputError", "traceback", "hang", "memory", "crash")
_OF_MEMORY = ("can't allocate", "bad_alloc", "out of memory", "Unable to allocate", "malloc of size", "realloc of size")


@dataclass(frozen=True)
class Ending:
    """The ending of one mutation. where: the innermost place in the product, or the signal."""

    number: int
    subject: str
    kind: str
    where: str = ""


@dataclass
class Examples:
    """The unchanged examples on disk."""

    root: Path
    subjects: Sequence[Subject]
    seed: int
    files: list[list[Path]] = field(default_factory=list)  # per subject, relative

    def folder(self, place: int) -> Path:
        return self.root / f"example_{place:02d}"

    def make(self) -> None:
        """Runs in a process that ends: the workers are copies of this one, and must not miss threads that it had."""
        for place, subject in enumerate(self.subjects):
            child = os.fork()
            if child == 0:
                _quiet(self.root / "making.txt")
                os.environ["ATLAS_CACHE_DIR"] = str(self.folder(place) / "atlas-cache")
                try:
                    self.folder(place).mkdir()
                    subject.make(self.folder(place))
                    for way in range(6):  # unchanged, it must be readable
                        copy = shutil.copytree(self.folder(place), self.root / f"whole_{way}", symlinks=True)
                        subject.read(copy, random.Random(way))
                        shutil.rmtree(copy)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            if os.waitpid(child, 0)[1]:
                sys.exit(f"The example '{subject.name}' cannot be made:\n{(self.root / 'making.txt').read_text()}")
            found = sorted(path for path in self.folder(place).rglob("*") if path.is_file() and not path.is_symlink())
            self.files.append([path.relative_to(self.folder(place)) for path in found])

    def change(self, number: int, scratch: Path) -> tuple[Subject, random.Random, str]:
        """Put the changed example of a number into an empty folder; returns the changed file."""
        place = number % len(self.subjects)
        rng = random.Random(f"{self.seed} {number}")
        shutil.copytree(self.folder(place), scratch, copy_function=os.link, symlinks=True)
        # Every kind of file equally often, however many files of it there are.
        files = self.files[place]
        kind = rng.choice(sorted({file.suffix for file in files}))
        chosen = rng.choice([file for file in files if file.suffix == kind])
        others = [(self.folder(place) / file).read_bytes() for file in rng.sample(files, min(2, len(files)))]
        content = (scratch / chosen).read_bytes()
        (scratch / chosen).unlink()  # it is a hard link to the example's
        (scratch / chosen).write_bytes(mutate(content, others, rng))
        subject = self.subjects[place]
        if subject.seal is not None:
            subject.seal(scratch)
        return subject, rng, str(chosen)


# ---- in the workers ------------------------------------------------------------------------------------------


def _quiet(errors: Path) -> None:
    """Nobody needs to read what the libraries say about each damaged file."""
    stream = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def work(examples: Examples, numbers: Sequence[int], scratch: Path, to: int) -> None:
    """Read the changed examples one after the other; report each one's number before, and its ending after."""
    stack = scratch.with_suffix(".stack").open("w")
    _quiet(scratch.with_suffix(".errors"))
    faulthandler.enable(stack)
    faulthandler.register(signal.SIGXCPU, stack, chain=True)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    os.environ["ATLAS_CACHE_DIR"] = str(scratch / "atlas-cache")
    for number in numbers:
        os.write(to, f"{number}\n".encode())
        spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent) + SECONDS + 1, resource.RLIM_INFINITY))
        ending = read_one(examples, number, scratch)
        os.write(to, f"{number}\t{ending.kind}\t{ending.where}\n".encode())
        shutil.rmtree(scratch, ignore_errors=True)


def read_one(examples: Examples, number: int, scratch: Path) -> Ending:
    name = examples.subjects[number % len(examples.subjects)].name
    subject, rng, _ = examples.change(number, scratch)
    try:
        subject.read(scratch, rng)
    except InputError as error:
        str(error).encode()
        return Ending(number, name, "InputError")
    except BaseException as error:
        short = isinstance(error, MemoryError) or any(words in str(error) for words in _OF_MEMORY)
        return Ending(number, name, "memory" if short else "traceback", _place_of(error))
    return Ending(number, name, "ok")


def _place_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if "/atlas/" in f.filename and "site-packages" not in f.filename] or frames[-1:]
    return f"{type(error).__name__} at {_relative(inside[-1].filename)}:{inside[-1].lineno} {inside[-1].name}"


def _relative(file: str) -> str:
    return file.removeprefix(f"{ROOT}/")


# ---- over them -----------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """A copy of this process that reads; a new one replaces it when it dies."""

    examples: Examples
    scratch: Path
    left: list[int]
    process: int = 0
    pipe: int = -1
    text: str = ""
    now: int | None = None  # the number it is working on
    since: float = 0.0

    def start(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.pipe, to = os.pipe()
        numbers = self.left[:LIFE]
        self.process = os.fork()
        if self.process == 0:
            try:
                work(self.examples, numbers, self.scratch, to)
            finally:
                os._exit(0)
        os.close(to)
        self.text, self.now, self.since = "", None, time.monotonic()

    def take(self) -> Iterator[Ending]:
        """What it has reported, or its end; then it is started again if there is more to do."""
        told = os.read(self.pipe, 65536).decode()
        *lines, self.text = (self.text + told).split("\n")
        for line in lines:
            number, *ending = line.split("\t")
            self.now, self.since = (None if ending else int(number)), time.monotonic()
            if ending:
                self.left.remove(int(number))
                yield Ending(int(number), self._name(int(number)), *ending)
        if not told:
            yield from self._ended()

    def _ended(self) -> Iterator[Ending]:
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        os.close(self.pipe)
        if self.now is not None:
            kind = "hang" if -code in (signal.SIGXCPU, signal.SIGKILL) else "crash"
            self.left.remove(self.now)
            said = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            yield Ending(self.now, self._name(self.now), kind, f"{said} at {self._stack()}")
        elif code:
            sys.exit(f"A worker ended between two mutations, with {code}.")

    def _stack(self) -> str:
        lines = self.scratch.with_suffix(".stack").read_text().splitlines()
        inside = [line for line in lines if f"{ROOT}/atlas/" in line]
        parts = (inside or lines or [""])[0].split('"')
        return _relative(parts[1]) + parts[2].replace(", line ", ":").replace(" in ", " ") if len(parts) > 2 else "?"

    def _name(self, number: int) -> str:
        return self.examples.subjects[number % len(self.examples.subjects)].name


def run_all(examples: Examples, numbers: Sequence[int], workers: int) -> list[Ending]:
    """The endings of these mutations, from several workers."""
    crew = [Worker(examples, examples.root / f"scratch_{i}", list(numbers[i::workers])) for i in range(workers)]
    endings: list[Ending] = []
    with selectors.DefaultSelector() as selector:

        def start(worker: Worker) -> None:
            if worker.left:
                worker.start()
                selector.register(worker.pipe, selectors.EVENT_READ, worker)

        for worker in crew:
            start(worker)
        try:
            while selector.get_map():
                for key, _ in selector.select(timeout=1.0):
                    worker, pipe = key.data, key.fd
                    ended = len(endings)
                    endings += worker.take()
                    if _closed(pipe):
                        selector.unregister(pipe)
                        start(worker)
                    if len(endings) // 1000 > ended // 1000:
                        print(f"{len(endings)} of {len(numbers)}", file=sys.stderr, flush=True)
                for key in list(selector.get_map().values()):
                    if time.monotonic() - key.data.since > PATIENCE:
                        os.kill(key.data.process, signal.SIGKILL)
        finally:
            for key in list(selector.get_map().values()):
                os.kill(key.data.process, signal.SIGKILL)
    return endings


def _closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def print_table(endings: Sequence[Ending]) -> None:
    print(f"| format | mutations | {' | '.join(KINDS)} |\n|{'---|' * (2 + len(KINDS))}")
    for name in [*dict.fromkeys(ending.subject for ending in sorted(endings, key=lambda e: e.number)), "all"]:
        counts = Counter(ending.kind for ending in endings if name in (ending.subject, "all"))
        print(f"| {name} | {counts.total()} | {' | '.join(str(counts[kind]) for kind in KINDS)} |")


def offenders(endings: Sequence[Ending]) -> list[str]:
    """A line for each place that should not have been reached, with how often, and one number that repeats it."""
    bad: dict[tuple[str, str, str], list[int]] = {}
    for ending in sorted(endings, key=lambda e: e.number):
        if ending.kind not in ("ok", "InputError"):
            bad.setdefault((ending.subject, ending.kind, ending.where), []).append(ending.number)
    return [f"{kind}, {subject}: {where} ({len(n)} times, --only {n[0]})" for (subject, kind, where), n in bad.items()]


def repeat(examples: Examples, number: int) -> int:
    """One mutation in this process, with its traceback; the changed files stay."""
    scratch = examples.root / "repeated"
    os.environ["ATLAS_CACHE_DIR"] = str(scratch / "atlas-cache")
    subject, rng, file = examples.change(number, scratch)
    print(f"{subject.name}: {scratch / file} was changed", flush=True)
    try:
        subject.read(scratch, rng)
    except InputError as error:
        print(f"InputError: {error}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="repeat one, with its traceback")
    parser.add_argument(
        "--subjects", nargs="*", default=[], metavar="WORD", help="formats whose names contain one of these"
    )
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    wanted = [s for s in SUBJECTS if not arguments.subjects or any(word in s.name for word in arguments.subjects)]
    begin = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="atlas-fuzz-"))
    try:
        with mock.patch.object(manifest, "sync_tree"):  # nothing here has to survive a power cut
            examples = Examples(root, wanted, arguments.seed)
            examples.make()
            if arguments.only is not None:
                return repeat(examples, arguments.only)
            endings = run_all(examples, range(arguments.mutations), arguments.workers)
    finally:
        if arguments.only is None:
            shutil.rmtree(root, ignore_errors=True)
    print_table(endings)
    found = offenders(endings)
    print(f"\nseed {arguments.seed}, {(time.monotonic() - begin) / 60:.1f} minutes\n" + "\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
