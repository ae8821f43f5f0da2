"""Settings of how fast a decision has to be, and what is done for it."""

from dataclasses import dataclass, fields, replace

from deas_vla.errors import DeasError


@dataclass
class SpeedConfig:
    """What guidance does to be fast.

    Attributes:
        compile: Compile the action head and the critic; on a GPU into CUDA graphs. Chunks then
            agree with the base policy to rounding, no longer to the last bit.
        budget_ms: Milliseconds that a decision may take; the largest number of candidates that
            fits, measured at start-up, then replaces the number asked for where it is smaller. 0
            is no budget.
        warm_every: Every so-manieth candidate starts from the unexecuted rest of the last chunk
            with noise over it: 2 is every other one, 0 none. Candidate 0 never does.
        warm_progress: Share of the denoising that counts as done for these, from 0 to below 1.
    """

    compile: bool = False
    budget_ms: float = 0.0
    warm_every: int = 0
    warm_progress: float = 0.5

    def check(self) -> None:
        """DeasError for a setting outside its range."""
        if self.budget_ms < 0:
            raise DeasError(f"guidance.budget_ms {self.budget_ms}: use milliseconds, or 0 for none")
        if self.warm_every < 0 or self.warm_every == 1:
            raise DeasError(
                f"guidance.warm_every {self.warm_every}: use 2 (every other candidate) or more, or "
                "0 for none; candidate 0 is always fresh"
            )
        if not 0 <= self.warm_progress < 1:
            raise DeasError(
                f"guidance.warm_progress {self.warm_progress}: use 0 (noise alone) to below 1"
            )


@dataclass
class SpeedOverride:
    """Flags that replace parts of a bundle's own `SpeedConfig`; what is left out stays.

    Attributes:
        compile: Compile the action head and the critic.
        budget_ms: Milliseconds that a decision may take; 0 is no budget.
        warm_every: Every so-manieth candidate goes on from the last chunk's rest; 0 is none.
        warm_progress: Share of the denoising that counts as done for these.
    """

    compile: bool | None = None
    budget_ms: float | None = None
    warm_every: int | None = None
    warm_progress: float | None = None

    def over(self, config: SpeedConfig) -> SpeedConfig:
        """``config`` with what these flags say; DeasError for a value outside its range."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        new = replace(config, **{name: value for name, value in said.items() if value is not None})
        new.check()
        return new
