"""The value-guided policy: N candidates from the flow head, the critic's favourite executed."""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from deas_vla.critic.base import Critic
from deas_vla.critic.serialization import load_critic, save_critic
from deas_vla.data.pooling import PoolingConfig, pool_tokens
from deas_vla.digests import update_with_weights
from deas_vla.errors import DeasError
from deas_vla.guidance.card import model_card
from deas_vla.guidance.checks import (
    check_base,
    check_candidates,
    check_environment,
    check_fit,
    check_observation,
)
from deas_vla.guidance.config import SelectionConfig
from deas_vla.guidance.configuration_guided import ValueGuidedConfig, local_directory, read_config
from deas_vla.guidance.manifest import MANIFEST, provenance_of, read_manifest, write_manifest
from deas_vla.guidance.noise import CandidateNoise, episode_seed
from deas_vla.guidance.processor_guided import save_processors
from deas_vla.guidance.selection import Selection, select
from deas_vla.guidance.startup import ready
from deas_vla.guidance.warm_start import real_time_tail, tail_of
from deas_vla.policies.compiling import compiled
from deas_vla.policies.config import load_vla
from deas_vla.policies.lora import active_weights, unwrapped
from deas_vla.policies.vla import VLA, Encoding, Tail

STATS_FILE = "dataset_stats.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """What the policy chose among.

    Attributes:
        candidates: (B, N, H, A) chunks, environment units.
        feature: (B, F) what the critic saw of the pictures and the instruction; None without one.
        state: (B, S) proprioceptive state.
        members: (E, B, N) values of the critic's ensemble, or None where no critic was asked.
        selection: What was chosen, and by which scores.
    """

    candidates: Tensor
    feature: Tensor | None
    state: Tensor
    members: Tensor | None
    selection: Selection

    @property
    def chosen(self) -> Tensor:
        """int64 (B,)."""
        return self.selection.chosen

    @property
    def scores(self) -> Tensor | None:
        """(B, N), or None where no critic was asked."""
        return self.selection.scores

    @property
    def chunk(self) -> Tensor:
        """The chosen chunks, (B, H, A)."""
        row = torch.arange(len(self.chosen))
        return self.candidates[row, self.chosen.cpu()]


class ValueGuidedPolicy(PreTrainedPolicy):
    """Best of N by a critic over the VLA's own frozen features (algorithms: policy extraction).

    A LeRobot policy that takes raw observation batches (``observation.images.*``,
    ``observation.state``, ``task``) and returns actions in environment units: the VLA's processors
    run inside, so LeRobot's own pre- and postprocessors are the identity.
    """

    config_class = ValueGuidedConfig
    name = "deas_guided"

    def __init__(
        self,
        config: ValueGuidedConfig,
        vla: VLA,
        critic: Critic | None,
        dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(config)
        check_environment(config, vla.spec)
        check_fit(config, vla, critic)
        config.describe(vla.spec, vla.image_size)
        self.vla = vla
        self.critic = critic
        self.dataset_stats = dataset_stats
        self.provenance = dict(provenance or {})
        self.last_decision: Decision | None = None
        self._warned = False
        self._resets = -1  # before the first one, which follows
        self._noise: CandidateNoise | None = None
        self._ready: dict[int, int] = {}  # candidates asked for to those decided among
        self._compiled_scores: Callable[..., Tensor] | None = None
        self.eval()
        self.reset()

    def supports_rtc(self) -> bool:
        """LeRobot's real-time chunking: see `predict_action_chunk`."""
        return True

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """``to(device)`` moves the VLA too; its weights are no parameters of this module."""
        if isinstance(self.vla.model, torch.nn.Module):
            self.vla.model._apply(fn)
        return super()._apply(fn, recurse)

    def reset(self, seeds: list[int] | None = None) -> None:
        """Forget queued actions and begin episodes with noise of their own.

        Args:
            seeds: One per parallel episode; when left out, every reset has others, which follow
                from ``config.seed``, and the next batch says how many episodes there are.
        """
        self._resets += 1
        self._noise = None if seeds is None else CandidateNoise(seeds)
        self._queue: deque[Tensor] = deque()
        self._rest: Tensor | None = None

    @torch.no_grad()
    def start(self, batch: Mapping[str, Any], candidates: int) -> int:
        """Make ready for observations like ``batch``, before the first step of a robot.

        Returns and raises as `startup.ready`: how many candidates to decide among, or why none.
        """
        self.check_candidates(candidates)
        seeds = [0] * len(batch["observation.state"])
        decide = lambda count: self.decide(batch, CandidateNoise(seeds), count)  # noqa: E731
        encoding = self.vla.encode(batch)

        def choose(count: int) -> None:
            streams = CandidateNoise(seeds)
            noise = streams.draw(count, self.vla.spec.noise_shape)
            self._decide(encoding, noise, streams.selection_generators())

        found = ready(self.vla.device, self.config.speed, decide, choose, self._compile, candidates)
        self._ready[candidates] = found
        return self._ready[candidates]

    def _compile(self) -> None:
        self.vla.compile()
        if self.critic is not None:
            self._compiled_scores = compiled(self.critic.member_scores, self.vla.device)

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any], **kwargs: Any) -> Tensor:
        """Decide for B observations; the first call does what `start` does.

        Args:
            batch: LeRobot observation batch.
            **kwargs: ``noise`` (B, N, *spec.noise_shape) replaces the policy's own streams.
                ``prev_chunk_left_over`` and ``inference_delay`` are LeRobot's real-time chunking:
                see `real_time_tail`.

        Returns:
            float32 (B, n_action_steps, A), environment units; with ``inference_delay`` the whole
            chunk, (B, H, A).
        """
        check_observation(self.vla.spec, batch)
        noise, left_over = kwargs.get("noise"), kwargs.get("prev_chunk_left_over")
        if noise is None:
            asked = self.config.candidates
            count = self._ready[asked] if asked in self._ready else self.start(batch, asked)
            noise = self._streams(batch).draw(count, self.vla.spec.noise_shape)
        count, generators = noise.shape[1], self._streams(batch).selection_generators()
        if left_over is not None:
            delay = int(kwargs.get("inference_delay") or 0)
            tail = real_time_tail(left_over, delay, len(noise), count, self.config.speed)
        else:
            rest = self._rest if self._rest is not None and len(self._rest) == len(noise) else None
            tail = tail_of(rest, count, self.config.speed)
        self.last_decision = self._decide(self.vla.encode(batch), noise, generators, tail)
        steps = self.config.n_action_steps
        self._rest = self.last_decision.chunk[:, steps:]
        whole = kwargs.get("inference_delay") is not None
        return self.last_decision.chunk[:, : None if whole else steps]

    def _streams(self, batch: Mapping[str, Any]) -> CandidateNoise:
        """One noise stream for each of the batch's episodes, from the last reset on.

        Raises:
            DeasError: The batch has another number of episodes than it had, or than seeds.
        """
        episodes = len(batch["observation.state"])
        if self._noise is None:
            seeds = [episode_seed(self.config.seed, self._resets, k) for k in range(episodes)]
            self._noise = CandidateNoise(seeds)
        if len(self._noise) != episodes:
            raise DeasError(
                f"batch of {episodes} episodes, the policy runs {len(self._noise)}: call reset() "
                "when episodes begin, with as many seeds as robots or with none"
            )
        return self._noise

    @torch.no_grad()
    def decide(
        self,
        batch: Mapping[str, Any],
        streams: CandidateNoise,
        candidates: int,
        rest: Tensor | None = None,
        selection: SelectionConfig | None = None,
    ) -> Decision:
        """Decide for B observations of any episodes, without touching the policy's own state.

        Args:
            batch: LeRobot observation batch.
            streams: Noise of these B episodes at their own plans.
            candidates: N.
            rest: (B, T, A) unexecuted steps of these episodes' last chunks, for warm starts.
            selection: How one is chosen; the policy's own setting when left out.

        Raises:
            DeasError: N above 1 without a critic, or a selection that the critic cannot serve.
        """
        rule = selection or self.config.selection
        check_candidates(candidates, self.critic, rule)
        noise = streams.draw(candidates, self.vla.spec.noise_shape)
        tail = tail_of(rest, candidates, self.config.speed)
        generators = streams.selection_generators()
        return self._decide(self.vla.encode(batch), noise, generators, tail, rule)

    def _decide(
        self,
        encoding: Encoding,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        tail: Tail | None = None,
        rule: SelectionConfig | None = None,
    ) -> Decision:
        """Sample N candidates from one encoding, score them on their first H steps, choose."""
        candidates = self.vla.sample(encoding, noise, tail)  # (B, N, H_policy, A)
        rule = rule or self.config.selection
        feature = members = scale = None
        if self.critic is not None:
            feature = self.feature(encoding)
            scale = self.critic.normalizer.action_std
            if candidates.shape[1] > 1 and rule.asks_critic:
                chunks = candidates[:, :, : self.critic.config.horizon].to(self.vla.device)
                state = encoding.state.to(self.vla.device)
                score = self._compiled_scores or self.critic.member_scores
                members = score(feature, state, chunks).clone()  # (E, B, N)
        selection = select(rule, candidates, members, generators, scale)
        self._warn_of_scores(selection)
        return Decision(candidates, feature, encoding.state, members, selection)

    def _warn_of_scores(self, selection: Selection) -> None:
        if not self._warned and not bool(selection.finite.all()):
            self._warned = True
            _log.warning(
                "a candidate's score is not finite: candidate 0 is kept there; retrain the critic"
            )

    def check_candidates(self, candidates: int) -> None:
        """DeasError for a number of candidates that this policy cannot choose among."""
        check_candidates(candidates, self.critic, self.config.selection)

    def feature(self, encoding: Encoding) -> Tensor:
        """The critic's view of an observation: float32 (B, F)."""
        return pool_encoding(self.vla, encoding, self.config.pooling)

    def revision(self) -> str:
        """SHA-256 over all weights and statistics: which policy and critic this is."""
        digest = hashlib.sha256(json.dumps(self.dataset_stats, sort_keys=True).encode())
        network = self.vla.model
        update_with_weights(digest, active_weights(network, unwrapped(network)) if network else {})
        update_with_weights(digest, self.critic.state_dict() if self.critic else {})
        return digest.hexdigest()

    def select_action(self, batch: Mapping[str, Any], **kwargs: Any) -> Tensor:
        """LeRobot's step-wise entry: float32 (B, A), deciding anew when the queue is empty."""
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch, **kwargs).transpose(0, 1))
        return self._queue.popleft()

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict | None]:
        raise DeasError(
            "a value-guided policy is not trained itself: use recipes/finetune_groot.py"
        )

    def get_optim_params(self) -> dict:
        return {}

    def _save_pretrained(self, save_directory: Path, state_dict: Any = None) -> None:
        """The whole bundle: see `deas_vla.bundle`. LeRobot's ``push_to_hub`` uploads just this."""
        (save_directory / MANIFEST).unlink(missing_ok=True)
        self.config._save_pretrained(save_directory)
        save_processors(self.config, save_directory)
        policy = save_directory / "policy"
        policy.mkdir(exist_ok=True)
        if self.config.adapter:
            self.vla.model.save_pretrained(policy)
        if self.dataset_stats is not None:
            (policy / STATS_FILE).write_text(json.dumps(self.dataset_stats, indent=1))
        if self.critic is not None:
            save_critic(self.critic, save_directory / "critic")
        card = model_card(self.config, self.critic, self.provenance)
        (save_directory / "README.md").write_text(card, encoding="utf-8")
        fingerprints = {
            "backbone": self.vla.backbone_fingerprint(), "head": self.vla.head_fingerprint()
        }  # fmt: skip
        write_manifest(save_directory, self.provenance, fingerprints)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: ValueGuidedConfig | None = None,
        revision: str | None = None,
        device: str | None = None,
        base: str | None = None,
        n_action_steps: int | None = None,
        load: Callable[..., VLA] = load_vla,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **kwargs: Any,
    ) -> "ValueGuidedPolicy":
        """Load a bundle's policy and critic from a directory or a Hub id.

        Every way in comes through here, and every file is checked against the manifest.

        Args:
            pretrained_name_or_path: The directory or Hub id.
            config: How it is run, where not as its own ``config.json`` says.
            revision: Branch, tag or commit on the Hub.
            device: Defaults to the one that the bundle was made on, where that is there.
            base: The base checkpoint, where it no longer is where the bundle says.
            n_action_steps: Steps executed of a chunk; the bundle's own number when left out.
            load: What loads the VLA, in place of `load_vla`.
            token: Of the Hub; ``cache_dir``, ``local_files_only`` and ``force_download`` likewise.
            cache_dir: See there.
            local_files_only: See there.
            force_download: See there.
            kwargs: What LeRobot gives to policies that it trains (a dataset's statistics); unused.

        Raises:
            DeasError: Missing, altered or mismatched parts, by name; a base checkpoint that is not
                the one that the bundle was made over; another robot.
        """
        root = local_directory(
            pretrained_name_or_path,
            revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        manifest, own = read_manifest(root), read_config(root)
        config = config or read_config(root)
        config.device = device or config.device
        config.vla.path = base or config.vla.path
        config.n_action_steps = n_action_steps or config.n_action_steps
        stats_file = root / "policy" / STATS_FILE
        stats = json.loads(stats_file.read_text()) if stats_file.exists() else None
        vla = load(
            config.vla,
            dataset_stats=stats,
            adapter=root / "policy" if config.adapter else None,
            device=str(config.device),
        )
        critic = None
        if (root / "critic").is_dir():
            critic = load_critic(root / "critic", str(config.device))
        policy = cls(config, vla, critic, stats, provenance_of(manifest))
        check_base(str(pretrained_name_or_path), manifest, own.vla, config.vla, vla)
        return policy


def pool_encoding(vla: VLA, encoding: Encoding, pooling: PoolingConfig) -> Tensor:
    """The frozen feature of B observations, float32 (B, F): in training and on the robot alike."""
    return pool_tokens(
        encoding.tokens if encoding.context is None else encoding.context,
        encoding.attention_mask,
        encoding.image_mask,
        len(vla.spec.image_keys),
        pooling,
        vla.spec.tokens_per_image,
    )
