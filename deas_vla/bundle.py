"""What a run leaves behind and a robot loads.

``config.json`` (how the guided policy is run), ``policy/`` (PEFT's adapter files, the dataset's
statistics), ``critic/`` (config, weights, normalisation), ``README.md`` (model card) and, written
last, ``bundle.json``: provenance and the SHA-256 of every other file, by which a half-written
bundle is told from a whole one.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from deas_vla.digests import file_digest
from deas_vla.errors import DeasError
from deas_vla.guidance.configuration_guided import ValueGuidedConfig, local_directory, read_config
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.policies.config import VLAConfig, load_vla

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
_PARTS = ("config.json", "policy", "critic", "README.md")


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
            policy.save_pretrained(new)
            (new / "README.md").write_text(_model_card(policy, provenance), encoding="utf-8")
            manifest = {
                "format_version": FORMAT_VERSION,
                **provenance,
                "backbone": policy.vla.backbone_fingerprint(),
                "files": _digests(new),
            }
            (new / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            (directory / MANIFEST).unlink(missing_ok=True)
            for part in _PARTS:
                _replace(new / part, directory / part)
            os.replace(new / MANIFEST, directory / MANIFEST)
    except OSError as error:
        raise DeasError(
            f"output directory {directory} cannot be written ({error.strerror or error}): "
            "choose another with --output_dir or free its disk"
        ) from error
    return directory


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """``bundle.json``, after checking that every file it lists is there and unchanged.

    Raises:
        DeasError: No bundle, half of one, or one of another format.
    """
    directory = Path(directory)
    file = directory / MANIFEST
    if not file.is_file():
        what = (
            "is half-written" if any((directory / p).exists() for p in _PARTS) else "is no bundle"
        )
        raise DeasError(
            f"bundle {directory} {what} (no {MANIFEST}): run recipes/finetune_groot.py "
            f"--output_dir={directory} to the end"
        )
    manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DeasError(
            f"bundle {directory} has format_version {manifest.get('format_version')}, this version "
            f"reads {FORMAT_VERSION}: write it again"
        )
    for name, digest in manifest["files"].items():
        path = directory / name
        if not path.is_file() or file_digest(path) != digest:
            state = "altered" if path.is_file() else "missing"
            raise DeasError(
                f"bundle {directory} is half-written: {name} is {state}; run the recipe again"
            )
    return manifest


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
    root = local_directory(directory, revision)
    manifest = read_manifest(root)
    config = read_config(root)
    config.vla.path = base or config.vla.path
    config.n_action_steps = n_action_steps or config.n_action_steps
    policy = ValueGuidedPolicy.from_pretrained(root, config=config, device=device)
    trained = manifest.get("backbone")  # bundles of before it was written have none
    if trained is not None and policy.vla.backbone_fingerprint() != trained:
        raise DeasError(
            f"bundle {directory} was made over another backbone than that of {config.vla.path} "
            f"(fingerprint {trained[:12]}): give the base checkpoint that it was trained on"
        )
    return policy


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


def _digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): file_digest(path) for path in files}


def _model_card(policy: ValueGuidedPolicy, provenance: dict[str, Any]) -> str:
    config, critic = policy.config, policy.critic
    data = provenance.get("data", {})
    if critic is None:
        value = "No critic: this bundle runs the finetuned policy itself."
    else:
        value = (
            f"Critic: `{critic.config.algorithm}` on chunks of {critic.config.horizon} steps, "
            f"{critic.config.bins} bins in {critic.config.v_min:.3g} to {critic.config.v_max:.3g}, "
            f"expectile {critic.config.expectile}, discounts {critic.config.g1} and "
            f"{critic.config.g2}, on `{config.pooling.kind}` features."
        )
    hub_id = config.vla.path if not Path(config.vla.path).exists() else None
    front = ["---", "library_name: lerobot", "pipeline_tag: robotics", "license: apache-2.0"]
    front += [f"base_model: {hub_id}"] if hub_id else []
    front += ["tags: [robotics, lerobot, vla, gr00t, offline-rl, deas]", "---"]
    body = f"""
# Value-guided GR00T policy

LoRA adapter and value critic for `{config.vla.path}`, embodiment `{config.vla.embodiment}`, made by
deas_vla from dataset `{data.get("repo_id")}` ({data.get("episodes")} episodes, of which
{data.get("successful_episodes")} successful).

{value}

At each decision {config.candidates} chunks are sampled from the flow-matching head; the one with
the highest value is executed for {config.n_action_steps} steps.

```python
from deas_vla.bundle import open_bundle

policy = open_bundle("path/to/this/directory")
action_chunk = policy.predict_action_chunk(observation)  # (B, {config.n_action_steps}, A)
```

The adapter loads with PEFT alone: `peft.PeftModel.from_pretrained(groot_model, ".../policy")`.
`bundle.json` holds the full configuration, seeds, versions and git revision of the run.
"""
    return "\n".join(front) + "\n" + body
