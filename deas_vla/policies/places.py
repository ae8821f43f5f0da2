"""Where a checkpoint lies, and what ships inside it."""

from pathlib import Path

from deas_vla.errors import DeasError


def checkpoint_directory(path: str | Path) -> Path:
    """The local directory of a checkpoint: itself, or the Hub's snapshot of ``path``.

    ``deas_vla/assets/...`` is also found beside the installed package, from any directory.
    """
    package = Path(__file__).resolve().parents[1]
    for local in (Path(path).expanduser(), package.parent / path):
        if local.is_dir():
            return local.resolve()
    if Path(path).is_absolute() or str(path).startswith(".") or str(path).count("/") != 1:
        raise DeasError(f"policy checkpoint '{path}' does not exist: give a directory or a Hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # hub errors have no common base
        raise DeasError(
            f"policy checkpoint '{path}' is neither a directory nor reachable on the Hub "
            f"({type(error).__name__}): check the name, the network and `hf auth login`"
        ) from error


def shipped(root: Path, name: str) -> str:
    """A backbone or tokenizer that ships inside the checkpoint is named relative to it."""
    local = root / name
    return str(local) if local.is_dir() else name
