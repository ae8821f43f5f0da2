"""What ``recipes/finetune_groot.py`` can be told, as dataclasses with LeRobot's flag names."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import get_args

from deas_vla.critic.config import CriticConfig
from deas_vla.data.image_transforms import ImageTransformsConfig, check_image_transforms
from deas_vla.data.pooling import PoolingConfig
from deas_vla.data.rewards import RewardConfig
from deas_vla.data.sampling import Balance
from deas_vla.data.tails import TailConfig
from deas_vla.data.transitions import Tail
from deas_vla.errors import DeasError
from deas_vla.guidance.config import SelectionConfig
from deas_vla.guidance.speed import SpeedConfig
from deas_vla.policies.config import ServerConfig, VLAConfig
from deas_vla.policies.lora import trains_backbone
from deas_vla.policies.vla import VLASpec
from deas_vla.training.checkpoints import CheckpointConfig

TOKENS = ("auto", "cached", "online")
AUGMENTATIONS = ("none", "checkpoint")
STAGES = ("features", "policy", "critic")
SCHEDULES = ("constant", "cosine")
_CRITIC_COUNTS = ("horizon", "policy_samples", "log_every")


@dataclass
class SourceConfig:
    """A LeRobotDataset v3.

    Attributes:
        repo_id: ``user/name``; fetched from the Hub where ``root`` is not given.
        root: Its directory.
        weight: Its part of every batch, relative to the other datasets' weights; as many frames as
            it has when all are left out.
    """

    repo_id: str = "local/dataset"
    root: str | None = None
    weight: float | None = None


@dataclass
class DatasetConfig(SourceConfig):
    """One dataset, or a mixture of several of one robot.

    Attributes:
        holdout: Share of the episodes kept out of all training, for offline evaluation.
        extra: Further datasets: ``--dataset.extra='[{root: DIR, weight: 1}]'``.
        image_transforms: LeRobot's random picture transforms, as in its own flags, where the policy
            trains on pictures (``policy.tokens``).
    """

    holdout: float = 0.1
    extra: list[SourceConfig] = field(default_factory=list)
    image_transforms: ImageTransformsConfig = field(default_factory=ImageTransformsConfig)

    @property
    def sources(self) -> list[SourceConfig]:
        """All datasets, in the order of their episodes."""
        return [SourceConfig(self.repo_id, self.root, self.weight), *self.extra]

    @property
    def shares(self) -> list[float] | None:
        """The datasets' weights, None where they count by size.

        Raises:
            DeasError: Only some have one, or one is not above 0.
        """
        weights = [source.weight for source in self.sources]
        given = [weight for weight in weights if weight is not None]
        if len(given) not in (0, len(weights)) or any(not weight > 0 for weight in given):
            raise DeasError(
                f"dataset weights {weights}: give each dataset one above 0 (--dataset.weight and "
                "weight in --dataset.extra), or none"
            )
        return given if given and len(weights) > 1 else None


@dataclass
class PolicyConfig:
    """The VLA and how its action head is finetuned.

    Attributes:
        path: Base checkpoint: local directory or Hub id of a raw GR00T N1.7 checkpoint, or of a
            policy that LeRobot saved.
        family: Adapter that loads it: ``groot``, LeRobot's ``smolvla``, ``pi0`` and ``pi05``, or
            ``remote``, which takes chunks from ``server`` beside its backbone.
        embodiment: Embodiment tag; ``new_embodiment`` takes statistics from the dataset,
            ``checkpoint`` those of a LeRobot policy.
        dtype: Of the frozen weights: float32, bfloat16 or float16; ``auto`` is bfloat16 on a GPU
            and float32 elsewhere. The critic is float32 everywhere.
        denoising_steps: Flow steps per chunk; the checkpoint's own when left out.
        episodes: Behaviour cloning on ``all`` or only on ``successful`` episodes.
        tokens: What training reads: ``cached`` tokens of every frame, or ``online``, where pictures
            go through the backbone in every step; ``auto`` takes the cache where it fits the disk,
            the backbone is frozen and pictures are not augmented.
        train: Parts that train: ``head`` (the flow's transformer), ``attention`` (of it only the
            attention layers), ``vl_self_attention`` and ``vlln`` (what the head makes of the tokens
            first), ``llm_top:K`` (the last K language layers), ``vision``, and ``projectors``,
            which stands for ``train_projectors``.
        train_whole: Those of them whose layers are trained themselves instead of by LoRA.
        augment: Pictures as they are (``none``), or augmented as the ``checkpoint`` says that it
            was (crop, rotation, colour).
        workers: Processes that decode, augment and preprocess pictures beside the training; 0 does
            it in between. They change no result.
        lora_rank: Rank of the adapters.
        lora_alpha: Their scale, relative to the rank.
        lora_dropout: Dropout before them.
        train_projectors: Also train the embodiment's state and action projectors, which an
            embodiment new to the checkpoint needs.
        steps: Updates; 0 leaves the base policy as it is, without an adapter.
        batch_size: Chunks per update, over all processes.
        gradient_accumulation_steps: Parts that a process takes its share of the batch in.
        gradient_checkpointing: Compute the head's activations again in the backward pass.
        lr: Peak learning rate of AdamW, cosine after 5 % warm-up.
        weight_decay: Of AdamW.
        grad_clip: Largest gradient norm; 0 leaves gradients alone.
        server: Of family ``remote``.
    """

    path: str = "nvidia/GR00T-N1.7-3B"
    family: str = "groot"
    embodiment: str = "new_embodiment"
    dtype: str = "auto"
    denoising_steps: int | None = None
    episodes: str = "all"
    tokens: str = "auto"
    train: list[str] = field(default_factory=lambda: ["head"])
    train_whole: list[str] = field(default_factory=list)
    augment: str = "none"
    workers: int = 2
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    train_projectors: bool = False
    steps: int = 5000
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    lr: float = 1e-4
    weight_decay: float = 1e-5
    grad_clip: float = 1.0
    server: ServerConfig = field(default_factory=ServerConfig)

    def vla(self, image_keys: tuple[str, ...], state_dim: int, action_dim: int) -> VLAConfig:
        """What loads this checkpoint for a dataset of these cameras and dimensions."""
        return VLAConfig(
            path=self.path,
            family=self.family,
            embodiment=self.embodiment,
            image_keys=list(image_keys),
            state_dim=state_dim,
            action_dim=action_dim,
            dtype=self.dtype,
            denoising_steps=self.denoising_steps,
            server=self.server,
        )


@dataclass
class FeaturesConfig:
    """The pass over all frames through the frozen backbone.

    Attributes:
        pooling: How tokens become the critic's feature.
        batch_size: Frames per forward pass.
        workers: Processes that decode and preprocess ahead of the backbone; when left out 0 on a
            CPU, else as many as cores allow, up to 8.
        cache: Directory of the cache; ``<output_dir>/cache`` when left out.
        skip_unreadable: Leave out episodes whose videos cannot be decoded, instead of ending; they
            are counted and listed.
    """

    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    batch_size: int = 64
    workers: int | None = None
    cache: str | None = None
    skip_unreadable: bool = False


@dataclass
class CriticTrainingConfig(CriticConfig):
    """The critic and its training.

    Attributes:
        steps: Updates.
        batch_size: Transitions per update, over all processes.
        balance: Which groups of transitions a batch holds equally many of: ``none``, ``outcome``
            (of episodes that succeed and that fail), ``task``, or ``outcome_task`` (each task,
            and within it each outcome).
        schedule: Of the learning rate: ``constant`` (the paper's) or ``cosine`` to 0 after 5 %
            warm-up.
        grad_clip: Largest gradient norm over all networks; 0 leaves gradients alone.
        compile: ``torch.compile`` the loss and, on one GPU, replay the whole update as a CUDA
            graph. The first updates take a minute; results differ by rounding.
        reward: Reward convention.
        bootstrap_episodes: Whether each member of the ensemble trains on a bootstrap sample of the
            episodes of its own, so that their disagreement tells where data are few.
        tails: What stands in a chunk after the step that ended its episode.
        tail: What becomes of chunks that a time limit cuts: ``drop`` or ``bootstrap``.
        policy_samples: Chunks the policy samples at each frame for the target of ``qc``, the one
            algorithm that asks it.
        log_every: Steps between two entries in the tracker, and between two looks at the loss.
    """

    steps: int = 10_000
    batch_size: int = 256
    balance: str = "none"
    schedule: str = "constant"
    grad_clip: float = 0.0
    compile: bool = False
    reward: RewardConfig = field(default_factory=RewardConfig)
    bootstrap_episodes: bool = False
    tails: TailConfig = field(default_factory=TailConfig)
    tail: Tail = "drop"
    policy_samples: int = 16
    log_every: int = 100

    def critic(self, **resolved: object) -> CriticConfig:
        """The critic's own part, with the dimensions and the support that the data decided."""
        names = {f.name for f in fields(CriticConfig)}
        values = {name: getattr(self, name) for name in names} | resolved
        return CriticConfig(**values)


@dataclass
class GuidanceConfig(SpeedConfig):
    """Defaults that the bundle is run with, those of `SpeedConfig` among them.

    Attributes:
        candidates: Chunks sampled per decision.
        selection: How one of them is chosen.
        n_action_steps: Steps executed of the chosen chunk; the critic's chunk length when 0.
    """

    candidates: int = 16
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    n_action_steps: int = 0

    def speed(self) -> SpeedConfig:
        return SpeedConfig(**{f.name: getattr(self, f.name) for f in fields(SpeedConfig)})


@dataclass
class WandbConfig:
    """Weights & Biases, through accelerate.

    Attributes:
        enable: Log there too, beside ``tracker``.
        project: Of its runs.
    """

    enable: bool = False
    project: str = "deas_vla"


@dataclass
class FinetuneConfig:
    """One run of the recipe.

    Attributes:
        output_dir: Where the bundle goes.
        checkpoint: When training states are saved, and which are kept.
        resume: Go on where an earlier run of the same settings stopped, or ended with fewer steps;
            false removes the checkpoints of ``stages`` and starts over.
        stages: Which of ``features``, ``policy`` and ``critic`` to run, in that order.
        seed: Of everything random.
        tracker: accelerate tracker: ``tensorboard``, ``trackio`` or ``none``.
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    critic: CriticTrainingConfig = field(default_factory=CriticTrainingConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    output_dir: Path = Path("outputs/run")
    resume: bool = True
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    seed: int = 0
    tracker: str = "tensorboard"

    @property
    def critic_asks_policy(self) -> bool:
        """Whether this run's critic needs samples of the policy: only ``qc`` does."""
        return "critic" in self.stages and self.critic.algorithm == "qc"

    @property
    def trains_backbone(self) -> bool:
        """Whether the critic's features are those of a backbone that this policy trained."""
        return self.policy.steps > 0 and trains_backbone(self.policy.train)

    @property
    def needs_pictures(self) -> str | None:
        """The flag that cached tokens cannot do justice to, None where they can."""
        if self.policy.steps and trains_backbone(self.policy.train):
            parts = [part for part in self.policy.train if trains_backbone([part])]
            return f"--policy.train={parts[0]}"
        if self.policy.augment != "none":
            return f"--policy.augment={self.policy.augment}"
        if self.dataset.image_transforms.enable:
            return "--dataset.image_transforms.enable=true"
        return None

    def check(self) -> None:
        """DeasError for a value that no stage could work with."""
        for stage in self.stages:
            if stage not in STAGES:
                raise DeasError(
                    f"stage '{stage}' is unknown: --stages takes some of {list(STAGES)}"
                )
        if self.critic.balance not in get_args(Balance):
            raise DeasError(
                f"critic.balance '{self.critic.balance}' is unknown: use one of "
                f"{list(get_args(Balance))}"
            )
        _ = self.dataset.shares
        if self.policy.episodes not in ("all", "successful"):
            raise DeasError(
                f"policy.episodes '{self.policy.episodes}' is unknown: use all or successful"
            )
        for name, choices in (("tokens", TOKENS), ("augment", AUGMENTATIONS)):
            value = getattr(self.policy, name)
            if value not in choices:
                raise DeasError(f"policy.{name} '{value}' is unknown: use one of {list(choices)}")
        if self.policy.workers < 0:
            raise DeasError(f"policy.workers {self.policy.workers}: use 0 or more")
        if self.policy.tokens == "cached" and self.needs_pictures:
            raise DeasError(
                f"policy.tokens=cached is not to be had with {self.needs_pictures}: cached tokens "
                "are those of a frozen backbone and plain pictures; use --policy.tokens=online"
            )
        if self.critic_asks_policy and self.policy.family == "remote":
            raise DeasError(
                "critic.algorithm=qc samples the policy at cached frames, of which policy.family="
                "remote has no pictures to send: use deas, iql, hlg or evor"
            )
        check_image_transforms(self.dataset.image_transforms)
        if self.checkpoint.load_best_at_end and self.dataset.holdout == 0:
            raise DeasError(
                "checkpoint.load_best_at_end with dataset.holdout=0: the best is so on held-out "
                "episodes, hold some out"
            )
        if self.tracker not in ("tensorboard", "trackio", "none"):
            raise DeasError(
                f"tracker '{self.tracker}' is unknown: use tensorboard, trackio or none, or "
                "--wandb.enable=true"
            )
        for name in ("policy", "critic"):
            stage_config = getattr(self, name)
            if name in self.stages and (stage_config.batch_size < 1 or stage_config.steps < 0):
                raise DeasError(
                    f"{name}.batch_size={stage_config.batch_size}, {name}.steps="
                    f"{stage_config.steps}: use a batch of 1 or more and 0 or more steps"
                )
        counts = {f"critic.{n}": getattr(self.critic, n) for n in _CRITIC_COUNTS}
        counts |= {f"checkpoint.{n}": getattr(self.checkpoint, n) for n in ("every", "keep")}
        counts["policy.gradient_accumulation_steps"] = self.policy.gradient_accumulation_steps
        for name, count in counts.items():
            if count < 1:
                raise DeasError(f"{name} {count}: use 1 or more")
        if self.critic.schedule not in SCHEDULES:
            raise DeasError(
                f"critic.schedule '{self.critic.schedule}' is unknown: use one of {list(SCHEDULES)}"
            )
        for name in ("policy", "critic"):
            if not getattr(self, name).grad_clip >= 0:
                raise DeasError(
                    f"{name}.grad_clip {getattr(self, name).grad_clip}: use 0 (off) or more"
                )
        bounds = (self.critic.v_min, self.critic.v_max)
        if self.critic.support != "fixed" and bounds != (None, None):
            raise DeasError(
                f"critic.v_min, v_max {bounds} with critic.support={self.critic.support}, which "
                "has bounds of its own: use --critic.support=fixed, or leave them out"
            )

    def check_fits(self, spec: VLASpec) -> None:
        """DeasError for a critic chunk, or steps to execute, that the policy's does not hold."""
        if self.critic.horizon > spec.action_horizon:
            raise DeasError(
                f"critic chunk length {self.critic.horizon} exceeds the policy's "
                f"{spec.action_horizon}: use --critic.horizon={spec.action_horizon} or less"
            )
        if self.guidance.n_action_steps > spec.action_horizon:
            raise DeasError(
                f"guidance.n_action_steps {self.guidance.n_action_steps} exceeds the policy's "
                f"chunk of {spec.action_horizon}: use as many or fewer"
            )
