"""Whether a damaged or malicious file is always refused: files of every format, changed at random and read.

    python benchmarks/fuzz.py [--each 20000] [--seed 0] [--only NUMBER] [--subjects WORD ...] [--workers 2]
        [--minutes 20]

`--each` mutations of every format are read, format by format; with `--minutes`, fewer where a format has used its share
of the time that is left. Each changes one file of a small example (bits, cuts, insertions, deletions, pieces of other
files, extreme numbers, words of a text), and the product's own code opens and reads it, in a separate process that may
take 5 s of processor time and 2 GiB beyond what it began with. It should succeed or end with an InputError. Prints a
table by format and the other endings, each with the number that repeats it (`--only`, with the same seed; `--subjects`
changes no number); the exit code is 1 if there is one. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import importlib
import logging
import math
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

import numpy as np
import torch
from fuzz_mutations import mutate
from fuzz_subjects import ROOT, SUBJECTS, Subject

from atlas.errors import InputError
from atlas.system import manifest

SECONDS = 5  # of processor time, per mutation
PATIENCE = 120.0  # of wall-clock time, if something else keeps the processors busy
MEMORY = 2 * 2**30
LIFE = 250  # mutations after which a worker is replaced, so that leaks do not grow
ROOM = 2**30  # bytes that must be free in memory to work there
MADE = 1_700_000_000  # when all files of the examples were made, in seconds
KINDS = ("ok", "InputError", "traceback", "hang", "memory", "crash")
_OF_MEMORY = ("can't allocate", "bad_alloc", "out of memory", "Unable to allocate", "malloc of size", "realloc of size")


@dataclass(frozen=True)
class Ending:
    """The ending of one mutation. where: the innermost place in the product, or the signal."""

    number: int
    subject: str
    kind: str
    where: str = ""


@dataclass(frozen=True)
class Example:
    """An unchanged example in memory and on disk. Paths are relative to its folder."""

    subject: Subject
    folder: Path
    folders: list[str]  # parents first
    links: dict[str, str]
    contents: dict[str, bytes]  # of its files
    to_change: list[str]  # files with something in them, in an order that does not follow from names that paths decide

    @classmethod
    def of(cls, subject: Subject, folder: Path) -> Example:
        there = sorted(folder.rglob("*"))
        names = {path: str(path.relative_to(folder)) for path in there}
        links = {names[path]: os.readlink(path) for path in there if path.is_symlink()}
        own = [path for path in there if names[path] not in links]
        folders = [names[path] for path in own if path.is_dir()]
        contents = {names[path]: path.read_bytes() for path in own if path.is_file()}
        to_change = sorted((n for n in contents if contents[n]), key=lambda n: (str(Path(n).parent), contents[n]))
        return cls(subject, folder, folders, links, contents, to_change)

    def change(self, rng: random.Random, scratch: Path) -> str:
        """Make a folder with the example, one of whose files is changed; returns which."""
        # Every kind of file equally often, however many files of it there are.
        kind = rng.choice(sorted({Path(file).suffix for file in self.to_change}))
        chosen = rng.choice([file for file in self.to_change if Path(file).suffix == kind])
        others = rng.sample(self.to_change, min(2, len(self.to_change)))
        content = mutate(self.contents[chosen], [self.contents[other] for other in others], rng)
        source, target = f"{self.folder}/", f"{scratch}/"
        os.mkdir(scratch)
        for name in self.folders:
            os.mkdir(target + name)
        for name, to in self.links.items():
            os.symlink(to, target + name)
        for name in self.contents:
            if name != chosen:
                os.link(source + name, target + name)
        (scratch / chosen).write_bytes(content)
        if self.subject.seal is not None:
            self.subject.seal(scratch)
        return chosen


@dataclass
class Examples:
    """The unchanged examples of some formats, by their place among all; a mutation's number has the remainder of its
    format's place."""

    root: Path
    places: Sequence[int]
    seed: int
    workers: int
    made: dict[tuple[int, Path], Example] = field(default_factory=dict)  # by place, and by where it is read

    def scratch(self, worker: int) -> Path:
        """The folder that a worker makes for each mutation."""
        return self.root / f"scratch_{worker}"

    def make(self) -> None:
        """Runs in processes that end: the workers are copies of this one, and must not miss threads that it had."""
        for place in self.places:
            modules = self.root / "modules.txt"
            child = os.fork()
            if child == 0:
                _quiet(self.root / "making.txt")
                try:
                    self._make(place)
                    modules.write_text("\n".join(sys.modules))
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            if os.waitpid(child, 0)[1]:
                said = (self.root / "making.txt").read_text()
                sys.exit(f"The example '{SUBJECTS[place].name}' cannot be made:\n{said}")
            for name in modules.read_text().split("\n"):  # imported once here, and not once in each worker
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            for worker in range(self.workers):
                example = Example.of(SUBJECTS[place], self._folder(place, worker))
                self.made[place, self.scratch(worker)] = example

    def _folder(self, place: int, worker: int) -> Path:
        return self.root / f"example_{place:02d}_{worker}"

    def _make(self, place: int) -> None:
        """The same bytes each time, so that a mutation can be repeated."""
        subject, first = SUBJECTS[place], self.root / f"example_{place:02d}"
        os.environ["ATLAS_CACHE_DIR"] = str(first / "atlas-cache")
        random.seed(0)
        torch.manual_seed(0)
        np.random.seed(0)
        first.mkdir()
        subject.make(first)
        for path in first.rglob("*"):
            os.utime(path, (MADE, MADE), follow_symlinks=False)
        for worker in range(self.workers):
            # Where it will be read, so that the caches, which know their files by path, belong to it.
            scratch = shutil.copytree(first, self.scratch(worker), symlinks=True)
            os.environ["ATLAS_CACHE_DIR"] = str(scratch / "atlas-cache")
            for way in range(6):  # unchanged, it must be readable
                subject.read(scratch, "", random.Random(way))
            scratch.rename(self._folder(place, worker))

    def name(self, number: int) -> str:
        return SUBJECTS[number % len(SUBJECTS)].name

    def read(self, number: int, scratch: Path) -> Iterator[str]:
        """Yields which file of the example was changed, in an empty folder, and then reads it."""
        rng = random.Random(f"{self.seed} {number}")
        example = self.made[number % len(SUBJECTS), scratch]
        changed = example.change(rng, scratch)
        yield changed
        example.subject.read(scratch, changed, rng)


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
    gc.freeze()  # what this process inherited is not looked through for every mutation
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
    name = examples.name(number)
    reading = examples.read(number, scratch)
    next(reading)
    try:
        next(reading, None)
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
                yield Ending(int(number), self.examples.name(int(number)), *ending)
        if not told:
            yield from self._ended()

    def _ended(self) -> Iterator[Ending]:
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        os.close(self.pipe)
        if self.now is not None:
            kind = "hang" if -code in (signal.SIGXCPU, signal.SIGKILL) else "crash"
            self.left.remove(self.now)
            said = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            yield Ending(self.now, self.examples.name(self.now), kind, f"{said} at {self._stack()}")
        elif code:
            sys.exit(f"A worker ended between two mutations, with {code}.")

    def _stack(self) -> str:
        lines = self.scratch.with_suffix(".stack").read_text().splitlines()
        inside = [line for line in lines if f"{ROOT}/atlas/" in line]
        parts = (inside or lines or [""])[0].split('"')
        return _relative(parts[1]) + parts[2].replace(", line ", ":").replace(" in ", " ") if len(parts) > 2 else "?"


def run_all(examples: Examples, numbers: Sequence[int]) -> list[Ending]:
    """The endings of these mutations of one format, from several workers."""
    shares = [list(numbers[i :: examples.workers]) for i in range(examples.workers)]
    crew = [Worker(examples, examples.scratch(i), share) for i, share in enumerate(shares)]
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
                    endings += worker.take()
                    if _closed(pipe):
                        selector.unregister(pipe)
                        start(worker)
                for key in list(selector.get_map().values()):
                    if time.monotonic() - key.data.since > PATIENCE:
                        os.kill(key.data.process, signal.SIGKILL)
        finally:
            for key in list(selector.get_map().values()):
                os.kill(key.data.process, signal.SIGKILL)
    return endings


def run_for(seconds: float, examples: Examples, numbers: Sequence[int]) -> tuple[list[Ending], float]:
    """The endings of the mutations of one format that are begun in this time, of a few at least, and the processor
    time of all, in seconds."""
    begin, spent, endings = time.monotonic(), _of_workers(), list[Ending]()
    while len(endings) < len(numbers) and (not endings or time.monotonic() - begin < seconds):
        some = run_all(examples, numbers[len(endings) :][: LIFE * examples.workers])
        endings += some
        for line in offenders(some):
            print(line, file=sys.stderr)
        speeds = (len(endings) / taken for taken in (time.monotonic() - begin, _of_workers() - spent))
        told = "{:.0f} a second, {:.0f} a second of a core".format(*speeds)
        print(f"{examples.name(numbers[0])}: {len(endings):,} of {len(numbers):,}, {told}", file=sys.stderr, flush=True)
    return endings, _of_workers() - spent


def _of_workers() -> float:
    """The processor time of the workers that have ended, in seconds."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def _closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def print_table(endings: Sequence[Ending], seconds: dict[str, float]) -> None:
    """seconds: of a core, that each format took."""
    print(f"| format | mutations | a second of a core | {' | '.join(KINDS)} |\n|{'---|' * (3 + len(KINDS))}")
    for name in [*seconds, "all"]:
        counts = Counter(ending.kind for ending in endings if name in (ending.subject, "all"))
        speed = counts.total() / max(0.01, sum(seconds.values()) if name == "all" else seconds[name])
        found = " | ".join(f"{counts[kind]:,}" for kind in KINDS)
        print(f"| {name} | {counts.total():,} | {speed:.0f} | {found} |")


def offenders(endings: Sequence[Ending]) -> list[str]:
    """A line for each place that should not have been reached, with how often, and one number that repeats it."""
    bad: dict[tuple[str, str, str], list[int]] = {}
    for ending in sorted(endings, key=lambda e: e.number):
        if ending.kind not in ("ok", "InputError"):
            bad.setdefault((ending.subject, ending.kind, ending.where), []).append(ending.number)
    return [f"{kind}, {subject}: {where} ({len(n)} times, --only {n[0]})" for (subject, kind, where), n in bad.items()]


def repeat(examples: Examples, number: int) -> int:
    """One mutation in this process, with its traceback; the changed files stay."""
    scratch = examples.scratch(0)
    os.environ["ATLAS_CACHE_DIR"] = str(scratch / "atlas-cache")
    try:
        for changed in examples.read(number, scratch):
            print(f"{examples.name(number)}: {scratch / changed} was changed", flush=True)
    except InputError as error:
        print(f"InputError: {error}")
    return 0


def _working_folder(stays: bool) -> Path:
    """A new folder, in memory if it can be: most of the time goes into making and removing files otherwise."""
    memory = Path("/dev/shm")
    fits = not stays and memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    return Path(tempfile.mkdtemp(prefix="atlas-fuzz-", dir=memory if fits else None))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=20000, metavar="N", help="mutations of every format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="repeat one, with its traceback")
    parser.add_argument(
        "--subjects", nargs="*", default=[], metavar="WORD", help="formats whose names contain one of these"
    )
    parser.add_argument("--minutes", type=float, help="after about which no more mutations are begun")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    places = [
        place
        for place, subject in enumerate(SUBJECTS)
        if not arguments.subjects or any(word in subject.name for word in arguments.subjects)
    ]
    if arguments.only is not None:
        places = [arguments.only % len(SUBJECTS)]
    begin = time.monotonic()
    root = _working_folder(stays=arguments.only is not None)
    endings: list[Ending] = []
    seconds: dict[str, float] = {}
    try:
        with mock.patch.object(manifest, "sync_tree"):  # nothing here has to survive a power cut
            examples = Examples(root, places, arguments.seed, 1 if arguments.only is not None else arguments.workers)
            examples.make()
            if arguments.only is not None:
                return repeat(examples, arguments.only)
            gc.collect()
            for done, place in enumerate(places):
                numbers = range(place, arguments.each * len(SUBJECTS), len(SUBJECTS))
                left = math.inf if arguments.minutes is None else begin + 60 * arguments.minutes - time.monotonic()
                found, seconds[SUBJECTS[place].name] = run_for(left / (len(places) - done), examples, numbers)
                endings += found
    finally:
        if arguments.only is None:
            shutil.rmtree(root, ignore_errors=True)
    print_table(endings, seconds)
    bad = offenders(endings)
    print(f"\nseed {arguments.seed}, {(time.monotonic() - begin) / 60:.1f} minutes\n" + "\n".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
