"""Getting a model to inspect or use: from wandb, the Hugging Face hub, or a run on this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from atlas.errors import InputError
from atlas.registry.artifact_cache import place
from atlas.registry.local_policy import fetch_hub_policy, find_policy
from atlas.registry.package import STAGED_FILES, read_package
from atlas.registry.references import WANDB, kind_of


@dataclass(frozen=True)
class Pulled:
    """The result. reference: with the version that an alias pointed to; path: the folder with its files.

    description: its model card in wandb, if it comes from there.
    """

    reference: str
    path: Path
    description: str | None = None

    @property
    def files(self) -> dict[str, int]:
        """{name: bytes}."""
        found = sorted(file for file in self.path.rglob("*") if file.is_file())
        return {file.relative_to(self.path).as_posix(): file.stat().st_size for file in found}

    @property
    def policy(self) -> Path | None:
        """The saved policy in it, for `load_policy`; None if there is none."""
        try:
            return find_policy(self.path, self.reference)
        except InputError:
            return None


def pull(reference: str | Path, out: Path | None = None) -> Pulled:
    """The model that a reference means; copied to `out` if that is given.

    reference: `entity/project/name:alias`, with or without `wandb:`; `hf:owner/name`; or a folder: a saved policy, a
    checkpoint, or a run, which means its best checkpoint's policy or, if the checkpoints are gone, the last model
    staged for wandb. Raises InputError.
    """
    found = _find(reference)
    return found if out is None else replace(found, path=place(found.path, out))


def _find(reference: str | Path) -> Pulled:
    from atlas.registry.download import fetch_artifact

    kind, text = kind_of(reference), str(reference)
    if kind == "hf":
        return Pulled(text, fetch_hub_policy(text))
    folder = Path(reference).expanduser()
    if kind == "folder" and folder.exists():
        return Pulled(text, _policy_or_staged(folder))
    if kind == "folder" and ":" not in text:
        raise InputError(
            f"There is no folder {text}; a model in wandb is given as {WANDB}entity/project/name:best, one on the "
            "Hugging Face hub as hf:owner/name."
        )
    cached = fetch_artifact(text)
    return Pulled(cached.receipt.reference, cached.path, cached.receipt.description)


def _policy_or_staged(folder: Path) -> Path:
    try:
        return find_policy(folder, str(folder))
    except InputError:
        staged = staged_models(folder)
        if not staged:
            raise
        return staged[-1]


def staged_models(run_dir: Path) -> list[Path]:
    """The files of the models in a run's folder that wait to be sent, in the order in which they were staged."""
    folders = sorted((run_dir / "wandb" / "staged").glob("*"))
    return [folder / STAGED_FILES for folder in folders if read_package(folder) is not None]
