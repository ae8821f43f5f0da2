"""``bundle.json``: where a bundle came from, and the digests that tell a whole one from half."""

import json
from pathlib import Path
from typing import Any

from deas_vla.digests import file_digest
from deas_vla.errors import DeasError

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
# Of a bundle, beside the manifest. Other files of its directory (caches, evaluations) are not its.
PARTS = (
    "config.json",
    "policy_preprocessor.json",
    "policy_postprocessor.json",
    "policy",
    "critic",
    "README.md",
)
_OWN = ("format_version", "backbone", "head", "files")


def write_manifest(
    directory: Path, provenance: dict[str, Any], fingerprints: dict[str, str]
) -> None:
    """Write ``bundle.json``, the last file of a bundle.

    Args:
        directory: Holds all parts.
        provenance: Resolved config, data, seeds, versions.
        fingerprints: ``backbone`` and ``head``, of the network that the bundle was made over.
    """
    manifest = {
        "format_version": FORMAT_VERSION,
        **provenance,
        **fingerprints,
        "files": _digests(directory),
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """``bundle.json``, after checking that every file it lists is there and unchanged.

    Raises:
        DeasError: No bundle, half of one, or one of another format.
    """
    directory = Path(directory)
    file = directory / MANIFEST
    if not file.is_file():
        half = any((directory / part).exists() for part in PARTS)
        what = "is half-written or half-downloaded" if half else "is no bundle"
        raise DeasError(
            f"bundle {directory} {what} (no {MANIFEST}): run recipes/finetune_groot.py "
            f"--output_dir={directory} to the end, or download it whole"
        )
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version, files = manifest.get("format_version"), manifest.get("files")
    except (OSError, ValueError, AttributeError) as error:
        raise DeasError(f"{file}: not readable ({error}); get the bundle again") from error
    if version != FORMAT_VERSION:
        raise DeasError(
            f"bundle {directory} has format_version {version}, this version reads "
            f"{FORMAT_VERSION}: write it again"
        )
    if not isinstance(files, dict):
        raise DeasError(f"{file}: names no files; get the bundle again")
    for name, digest in files.items():
        path = directory / name
        if not path.is_file() or file_digest(path) != digest:
            state = "altered" if path.is_file() else "missing"
            raise DeasError(
                f"bundle {directory} is half-written or half-downloaded: {name} is {state}; run "
                "the recipe again, or download it whole"
            )
    return manifest


def provenance_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of the run, without what it says of this copy's files."""
    return {name: value for name, value in manifest.items() if name not in _OWN}


def _digests(directory: Path) -> dict[str, str]:
    places = [directory / part for part in PARTS]
    files = [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]
    return {file.relative_to(directory).as_posix(): file_digest(file) for file in sorted(files)}
