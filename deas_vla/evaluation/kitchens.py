"""The flags that everything shares which runs a policy in RoboCasa's kitchens."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deas_vla.envs.env import IMAGE_PREFIX, EnvSpec
from deas_vla.envs.gl import check_gl
from deas_vla.envs.robocasa.kitchen import (
    EMBODIMENT,
    KitchenConfig,
    KitchenEnv,
    kitchen_spec,
    known_cameras,
    scenes,
)
from deas_vla.envs.robocasa.tasks import choose_assets, resolve_tasks
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.trials import paired_trials
from deas_vla.evaluation.engine.workers import Trial
from deas_vla.evaluation.runs import PolicyRun
from deas_vla.guidance.config import SelectionOverride
from deas_vla.guidance.speed import SpeedOverride

if TYPE_CHECKING:  # simulator processes import this file, and torch takes long
    from deas_vla.evaluation.engine.launch import Launch
    from deas_vla.guidance.guided import ValueGuidedPolicy
    from deas_vla.policies.config import VLAConfig


@dataclass
class PolicySource:
    """A base checkpoint.

    Attributes:
        path: Local directory or Hub id; the bundle's own base when empty.
        embodiment: Embodiment tag in the checkpoint, where there is no bundle to say it.
        dtype: Of the weights, likewise.
        denoising_steps: Flow steps per chunk, likewise; the checkpoint's own when left out.
    """

    path: str = ""
    embodiment: str = EMBODIMENT
    dtype: str = "float32"
    denoising_steps: int | None = None

    def vla(self, spec: EnvSpec) -> "VLAConfig":
        """What loads this checkpoint for an environment."""
        from deas_vla.policies.config import VLAConfig

        return VLAConfig(
            path=self.path,
            embodiment=self.embodiment,
            image_keys=list(spec.image_keys),
            state_dim=len(spec.state_names),
            action_dim=len(spec.action_names),
            dtype=self.dtype,
            denoising_steps=self.denoising_steps,
        )


@dataclass
class KitchenRolloutConfig:
    """Which policy runs in which kitchens.

    Attributes:
        policy: Base checkpoint; with a bundle only its path counts, where the base has moved.
        bundle: Bundle directory from recipes/finetune_groot.py; without one the checkpoint runs
            as it is, with one candidate.
        tasks: RoboCasa's tasks, their names of 2024, or its groups such as ``atomic_seen``.
        candidates: Numbers of candidates, each over the same episodes; ``[1,16]`` with a critic
            and ``[1]`` without when left out.
        selection: How one of the candidates is chosen, where not as the bundle says.
        guidance: Compilation, latency budget and warm starts, likewise.
        n_action_steps: Steps executed of a chunk; the bundle's own number when 0, half the chunk
            without a bundle.
        episodes: Of each task, seed and number of candidates.
        seeds: Sets of episodes; no two share an episode or a noise stream.
        assets: Whose kitchens: ``robocasa``, which have to be downloaded, ``lite``, which come with
            this package, or ``auto``: RoboCasa's where they are there. Results say which.
        split: RoboCasa's kitchens and objects: ``pretrain``, ``target`` or ``all``; of lite
            kitchens ``train``, ``test`` (for which RoboCasa's names stand too), ``varied``,
            ``validation`` or ``all``.
        layouts: Only these layouts of the split; all of them when empty. RoboCasa's have numbers,
            lite ones names.
        styles: Only these styles of the split; all of them when empty.
        cameras: Cameras by RoboCasa's names; those of the bundle when empty, all three without one.
        image_size: Height and width of the pictures, pixels; as in the bundle's training data when
            0, 256 without a bundle.
        horizon: Steps until truncation; RoboCasa's own for each task when 0.
        workers: Simulator processes, of each process of `accelerate launch`.
        batch_size: Observations per policy call; 1 on a CPU and 8 on a GPU when 0.
        output_dir: Where everything goes, and where an interrupted run goes on.
    """

    policy: PolicySource = field(default_factory=PolicySource)
    bundle: Path | None = None
    tasks: list[str] = field(default_factory=lambda: ["atomic_seen"])
    candidates: list[int] | None = None
    selection: SelectionOverride = field(default_factory=SelectionOverride)
    guidance: SpeedOverride = field(default_factory=SpeedOverride)
    n_action_steps: int = 0
    episodes: int = 50
    seeds: list[int] = field(default_factory=lambda: [0])
    assets: str = "auto"
    split: str = "target"
    layouts: list[int | str] = field(default_factory=list)
    styles: list[int | str] = field(default_factory=list)
    cameras: list[str] = field(default_factory=list)
    image_size: int = 0
    horizon: int = 0
    workers: int = 2
    batch_size: int = 0
    output_dir: Path = Path("outputs/robocasa")

    def kitchen(self, task: str) -> KitchenConfig:
        return KitchenConfig(
            task=task,
            assets=self.assets,
            split=self.split,
            layouts=tuple(self.layouts),
            styles=tuple(self.styles),
            cameras=tuple(self.cameras) or KitchenConfig.cameras,
            image_size=self.image_size or KitchenConfig.image_size,
            horizon=self.horizon,
        )

    def where(self) -> str:
        """Whose kitchens these are, once `check` knows, and those of the bundle's data if others.

        The first line of every result: numbers of the two are never pooled.
        """
        names = {
            "robocasa": "RoboCasa's own kitchens",
            "lite": "lite kitchens",
            "mixed": "both kinds of kitchens",
        }
        said = f"in {names[self.assets]}, split {self.split}"
        if self.bundle is None:
            return said
        from deas_vla.bundle import read_manifest

        trained = read_manifest(self.bundle)["data"].get("assets")
        if not trained or trained == self.assets:
            return said
        return f"{said}, by a bundle trained in {names.get(trained, trained)}"

    def make_env(self, task: str) -> KitchenEnv:
        return KitchenEnv(self.kitchen(task))

    def check(self) -> list[EnvSpec]:
        """The tasks, after whatever can be found wrong without starting a simulator.

        What the bundle says about cameras stands in ``cameras`` and ``image_size`` afterwards, and
        whose kitchens ``auto`` has found in ``assets``.

        Raises:
            DeasError: An unknown task, a split without kitchens, missing assets, a renderer that
                does not start, or no bundle.
        """
        if self.bundle is not None:
            self._look_as_trained(self.bundle)
        tasks = resolve_tasks(self.tasks)
        self.assets = choose_assets(self.assets, tasks, KitchenConfig().object_registries)
        for task in tasks:
            scenes(self.kitchen(task))
        check_gl()
        return [kitchen_spec(self.kitchen(task)) for task in tasks]

    def _look_as_trained(self, bundle: Path) -> None:
        """Take cameras and image size from the bundle's training data, unless the flags say."""
        from deas_vla.bundle import read_manifest

        found = read_manifest(bundle)["data"].get("image_sizes", {})
        sizes = {key.removeprefix(IMAGE_PREFIX): tuple(size) for key, size in found.items()}
        if not set(sizes) <= set(known_cameras()):
            return  # of another robot; which dimensions differ is said once the policy is there
        self.cameras = self.cameras or list(sizes)
        if self.image_size == 0 and sizes:
            if len({*sizes.values(), *(size[::-1] for size in sizes.values())}) > 1:
                raise DeasError(
                    f"bundle {bundle} was trained on pictures of {sizes} pixels, kitchens have one "
                    "size, and square: choose it with --image_size"
                )
            ((self.image_size, _),) = set(sizes.values())

    def open_policy(self, specs: list[EnvSpec], device: str) -> "ValueGuidedPolicy":
        """The policy that the flags name, as they want it run.

        Args:
            specs: The tasks, from `check`.
            device: Where it runs.

        Raises:
            DeasError: It cannot be loaded, or is of another robot than ``specs``.
        """
        from deas_vla.bundle import open_policy
        from deas_vla.evaluation.engine.agents import check_embodiment

        steps = self.n_action_steps or None
        vla = self.policy.vla(specs[0])
        policy = open_policy(self.bundle, vla, n_action_steps=steps, device=device)
        source = f"bundle {self.bundle}" if self.bundle else f"checkpoint {self.policy.path}"
        for spec in specs:
            check_embodiment(policy.vla.spec, spec, source)
        policy.config.selection = self.selection.over(policy.config.selection)
        policy.config.speed = self.guidance.over(policy.config.speed)
        return policy

    def trials(self, specs: list[EnvSpec], *, has_critic: bool) -> list[Trial]:
        """All episodes that the flags ask for.

        Raises:
            DeasError: As `paired_trials`, or several candidates without a critic.
        """
        candidates = self.candidates or ([1, 16] if has_critic else [1])
        trials = paired_trials([s.name for s in specs], self.seeds, self.episodes, candidates)
        if max(candidates) > 1 and not has_critic:
            raise DeasError(
                f"candidates {candidates} without a critic: give a --bundle that has one, or use "
                "--candidates=[1]"
            )
        return trials

    def claim(self, launch: "Launch", specs: list[EnvSpec], **more: Any) -> PolicyRun:
        """`PolicyRun.claim` of the policy that the flags name, in the kitchens of ``specs``.

        Raises:
            DeasError: As `open_policy`, `trials` and `PolicyRun.claim`.
        """
        policy = self.open_policy(specs, launch.device)
        return PolicyRun.claim(
            launch,
            policy,
            self.kitchen(specs[0].name),
            self.output_dir,
            make_env=self.make_env,
            trials=self.trials(specs, has_critic=policy.critic is not None),
            workers=self.workers,
            batch_size=self.batch_size,
            **more,
        )
