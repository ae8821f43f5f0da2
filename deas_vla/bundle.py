"""What a run leaves behind and a robot loads, from a directory or from the Hub.

``config.json`` (how the guided policy is run), ``policy/`` (PEFT's adapter files, the dataset's
statistics), ``critic/`` (config, weights, normalisation), ``policy_preprocessor.json`` and
``policy_postprocessor.json`` (LeRobot's), ``README.md`` (model card) and, written last,
``bundle.json``: provenance and the SHA-256 of every other file, by which a half-written bundle is
told from a whole one.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from deas_vla.critic.serialization import load_critic
from deas_vla.errors import DeasError
from deas_vla.guidance.card import model_card
from deas_vla.guidance.configuration_guided import ValueGuidedConfig, read_config
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.guidance.manifest import (
    MANIFEST,
    PARTS,
    provenance_of,
    read_manifest,
    write_manifest,
)
from deas_vla.policies.config import VLAConfig, load_vla

__all__ = [
    "MANIFEST", "open_bundle", "open_policy", "push_bundle", "read_manifest", "write_bundle"
]  # fmt: skip


def write_bundle(
    policy: ValueGuidedPolicy, directory: str | Path, provenance: dict[str, Any]
) -> Path:
    """Write or replace the bundle in ``directory``; other files there stay.

    Everything is written beside and then renamed, the manifest last.

    Args:
        policy: With its critic, if it has one.
        directory: The bundle's directory.
        provenance: Resolved config, data, seeds and versions; goes into ``bundle.json``.

    Raises:
        DeasError: The place cannot be written.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".bundle.") as beside:
            new = Path(beside)
            policy.provenance = provenance
            policy.save_pretrained(new)
            (directory / MANIFEST).unlink(missing_ok=True)
            for part in PARTS:
                _replace(new / part, directory / part)
            os.replace(new / MANIFEST, directory / MANIFEST)
    except OSError as error:
        raise DeasError(
            f"output directory {directory} cannot be written ({error.strerror or error}): "
            "choose another with --output_dir or free its disk"
        ) from error
    return directory


def open_bundle(
    directory: str | Path,
    *,
    revision: str | None = None,
    device: str | None = None,
    base: str | None = None,
    n_action_steps: int | None = None,
) -> ValueGuidedPolicy:
    """Load the value-guided policy of a whole bundle, on ``device`` or where it was made.

    Args:
        directory: The bundle: a directory, or a Hub id such as ``user/name``.
        revision: Branch, tag or commit on the Hub.
        device: Where it runs.
        base: The base checkpoint, where it no longer is where the bundle says.
        n_action_steps: Steps executed of a chunk; the bundle's own number when left out.

    Raises:
        DeasError: As `read_manifest`, or a base checkpoint that is not there, or whose backbone is
            not the one that the critic was trained over.
    """
    return ValueGuidedPolicy.from_pretrained(
        directory, revision=revision, device=device, base=base, n_action_steps=n_action_steps
    )


def push_bundle(
    directory: str | Path,
    repo_id: str,
    *,
    results: str | Path | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload policy",
) -> str:
    """Upload a bundle, and nothing else of its directory, to the Hub; no base checkpoint is loaded.

    ``policy.push_to_hub(repo_id)`` does the same for a loaded policy.

    Args:
        directory: The bundle.
        repo_id: Where it goes, such as ``user/name``; made where it is not there.
        results: A ``results.json`` of ``eval/``, for the card's table; that of
            ``<directory>/eval`` where there is one.
        private: Whether a new repository is private.
        revision: Branch to push to, made where it is not there.
        token: Of the Hub; the one of ``hf auth login`` when left out.
        commit_message: Of the commit.

    Returns:
        The commit's address.

    Raises:
        DeasError: Not a whole bundle, results that are none, or a Hub that refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    directory = Path(directory)
    manifest = read_manifest(directory)
    provenance = provenance_of(manifest)
    evaluated = Path(results) if results else directory / "eval" / "results.json"
    if results or evaluated.is_file():
        provenance["results"] = _success_rows(evaluated)
    with tempfile.TemporaryDirectory(prefix="bundle.") as beside:
        copy = Path(beside)
        for name in manifest["files"]:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / name, copy / name)
        critic = load_critic(copy / "critic") if (copy / "critic").is_dir() else None
        card = model_card(read_config(copy), critic, provenance)
        (copy / "README.md").write_text(card, encoding="utf-8")
        found = {part: manifest.get(part) for part in ("backbone", "head")}
        fingerprints = {part: digest for part, digest in found.items() if digest is not None}
        write_manifest(copy, provenance, fingerprints)
        api = HfApi(token=token)
        try:
            repo_id = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo_id=repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=copy,
                commit_message=commit_message,
                revision=revision,
                delete_patterns=["policy/*", "critic/*"],  # of an earlier bundle
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise DeasError(
                f"bundle {directory} cannot be pushed to {repo_id} ({type(error).__name__}): check "
                "the name, the network and `hf auth login`"
            ) from error
    return str(commit)


def open_policy(
    bundle: Path | None, vla: VLAConfig, *, n_action_steps: int | None, device: str
) -> ValueGuidedPolicy:
    """A bundle, or without one the checkpoint ``vla`` as it is: one candidate, no critic.

    Args:
        bundle: Its directory. Its own configuration then stands for ``vla``, except the path.
        vla: Base checkpoint; an empty path means the bundle's own.
        n_action_steps: Steps executed of a chunk; when left out, as many as the bundle says, or
            half of the checkpoint's chunk.
        device: Where it runs.

    Raises:
        DeasError: Neither is given, or what is given cannot be loaded or does not fit.
    """
    if bundle is not None:
        base = vla.path or None
        return open_bundle(bundle, device=device, base=base, n_action_steps=n_action_steps)
    if not vla.path:
        raise DeasError("no policy is given: use --bundle=DIR, --policy.path=CHECKPOINT or both")
    model = load_vla(vla, device=device)
    config = ValueGuidedConfig(
        vla=vla,
        candidates=1,
        n_action_steps=n_action_steps or max(1, model.spec.action_horizon // 2),
        adapter=False,
        device=device,
    )
    return ValueGuidedPolicy(config, model, critic=None)


def _replace(new: Path, place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    if new.exists():
        os.replace(new, place)


def _success_rows(file: Path) -> list[dict[str, Any]]:
    """The success rates in an evaluation's ``results.json``."""
    wanted = {"task", "candidates", "episodes", "success_rate", "ci95"}
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
        if not rows or not all(wanted <= set(row) for row in rows):
            raise ValueError(f"rows lack some of {sorted(wanted)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeasError(
            f"results {file} hold no success rates ({error}): give the results.json of "
            "eval/robosuite.py or eval/robocasa.py"
        ) from error
    return rows
