"""What the server answers to the bytes of a message: endpoints, checks, replies."""

import hmac
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deas_vla import __version__
from deas_vla.errors import DeasError
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.policies.remote.layout import WireLayout
from deas_vla.policies.remote.wire import MAX_MESSAGE_BYTES, pack, unpack
from deas_vla.serving.batcher import Batcher, Busy, Done
from deas_vla.serving.deciding import Answer, Decider, Question
from deas_vla.serving.monitor import Trace
from deas_vla.serving.observations import Seen, check_embodiment, read_observation
from deas_vla.serving.options import read_options

_log = logging.getLogger(__name__)
_SERVER = f"deas_vla {__version__}"
Reply = Callable[[bytes], None]


class Service:
    """NVIDIA's policy server, both generations, over one policy; knows no socket.

    Args:
        policy: In evaluation mode, started.
        layout: Its names on the wire.
        most_candidates: N that a request may ask for.
        most_waiting: Requests that may wait.
        most_rows: Observations of one call of the policy.
        timeout_s: Seconds that a request may wait.
        token: Requests must carry it, where it is given.
        limit: Bytes of a message.
        text_modalities: ``get_modality_config`` as N1.5's clients read it.
        trace: What the policy believed, for the monitor.
    """

    def __init__(
        self,
        policy: ValueGuidedPolicy,
        layout: WireLayout,
        *,
        most_candidates: int,
        most_waiting: int = 32,
        most_rows: int = 16,
        timeout_s: float = 10.0,
        token: str | None = None,
        limit: int = MAX_MESSAGE_BYTES,
        text_modalities: bool = False,
        trace: Trace | None = None,
    ) -> None:
        self.policy = policy
        self.layout = layout
        self.limit = limit
        self.trace = trace or Trace()
        self._most_candidates = most_candidates
        self._token = token
        self._text_modalities = text_modalities
        self._kill: Callable[[], None] | None = None
        self._number = itertools.count()
        fill = most_rows if policy.config.speed.compile else 0
        self.batcher = Batcher(
            Decider(policy, fill),
            most_waiting=most_waiting,
            most_rows=most_rows,
            timeout_s=timeout_s,
        )

    def allow_kill(self, kill: Callable[[], None]) -> None:
        """Let clients end the server, by calling ``kill``."""
        self._kill = kill

    def handle(self, raw: bytes, reply: Reply, client: str = "") -> None:
        """Answer one message: ``reply`` is called once, now or later on the policy's thread.

        Args:
            raw: The message.
            reply: Takes the reply's bytes.
            client: Name of the connection, whose values the monitor keeps apart.
        """
        try:
            self._dispatch(unpack(raw, self.limit), reply, client)
        except DeasError as error:
            reply(_failure(error))
        except Exception as error:  # a message must never end the server
            _log.exception("a message was not understood")
            reply(_failure(DeasError(f"message not understood ({type(error).__name__})")))

    def _dispatch(self, request: Any, reply: Reply, client: str) -> None:
        if not isinstance(request, Mapping):
            raise DeasError(
                f"message is {type(request).__name__}, not a map: send {{'endpoint', 'data'}}"
            )
        self._check_token(request.get("api_token"))
        endpoint = request.get("endpoint", "get_action")
        data = request.get("data")
        if endpoint == "get_action":
            self._get_action(data, reply, client)
        elif endpoint == "ping":
            reply(pack(self.status()))
        elif endpoint == "reset":
            reply(pack(self._reset(data, client)))
        elif endpoint == "get_modality_config":
            reply(pack(self.layout.modality_config(text=self._text_modalities)))
        elif endpoint == "monitor":
            since = data.get("since", 0) if isinstance(data, Mapping) else 0
            reply(pack(self.trace.since(since if isinstance(since, int) else 0)))
        elif endpoint == "kill" and self._kill is not None:
            reply(pack({"status": "ok", "message": "Server stops"}))
            self._kill()
        else:
            known = "get_action, ping, reset, get_modality_config, monitor"
            off = " (kill needs --allow_kill=true)" if endpoint == "kill" else ""
            raise DeasError(f"endpoint {str(endpoint)[:40]!r} is unknown{off}: use {known}")

    def _check_token(self, told: Any) -> None:
        if self._token is None:
            return
        said = told if isinstance(told, str) else ""
        if not hmac.compare_digest(said.encode(), self._token.encode()):
            raise DeasError("Unauthorized: Invalid API token (send api_token)")

    def status(self) -> dict[str, Any]:
        """What ``ping`` answers."""
        config = self.policy.config
        return {
            "status": "ok",
            "message": "Server is running",
            "server": _SERVER,
            "model": Path(self.policy.vla.name_or_path).name,
            "embodiment": self.layout.embodiment,
            "device": str(self.policy.vla.device),
            "candidates": min(config.candidates, self._most_candidates),
            "most_candidates": self._most_candidates,
            "n_action_steps": config.n_action_steps,
            "selection": config.selection.rule,
            "critic": self.policy.critic is not None,
            "state_widths": {name: end - at for name, (at, end) in self.layout.state.items()},
            "waiting": self.batcher.waiting,
            **self.batcher.counts.plain(),
        }

    def _reset(self, data: Any, client: str) -> dict[str, Any]:
        options = data.get("options") if isinstance(data, Mapping) else None
        session = options.get("session") if isinstance(options, Mapping) else None
        self.trace.reset(session if isinstance(session, str) and session else client)
        return {}

    def _get_action(self, data: Any, reply: Reply, client: str) -> None:
        if not isinstance(data, Mapping):
            raise DeasError(
                f"get_action's data is {type(data).__name__}: send {{'observation', 'options'}}, "
                "or a flat observation as GR00T N1.5 does"
            )
        wrapped = "observation" in data  # N1.6 and N1.7
        if wrapped and set(data) - {"observation", "options"}:
            surplus = sorted(str(key)[:40] for key in set(data) - {"observation", "options"})
            raise DeasError(
                f"get_action's data holds '{surplus[0]}' beside the observation: generations are "
                "mixed; send {'observation', 'options'} alone, or a flat observation alone"
            )
        told = data.get("options") if wrapped else None
        if isinstance(told, Mapping):
            check_embodiment(told.get("embodiment"), self.layout)
        seen = read_observation(
            data["observation"] if wrapped else data, self.layout, self.batcher.most_rows
        )
        question = self.question(seen, told)
        arrived = time.monotonic()

        def done(answer: Answer | DeasError) -> None:
            if isinstance(answer, DeasError):
                reply(_failure(answer))
                return
            action = self._action(answer, seen.flat, seen.single)
            info = self._info(question, answer, 1000 * (time.monotonic() - arrived))
            reply(pack([action, info] if wrapped else action))

        self.submit(question, done, client)

    def question(self, seen: Seen, told: Any) -> Question:
        """Observations and a request's options, checked; seeds of its own where it tells none."""
        options = read_options(
            told, self.policy, len(seen), self._most_candidates, next(self._number)
        )
        return Question(seen, options)

    def submit(self, question: Question, done: Done, client: str) -> None:
        """Queue a question; its answer goes to the monitor and to ``done``. Raises `Busy`."""

        def seen_by_the_monitor(answer: Answer | DeasError) -> None:
            if isinstance(answer, Answer):
                self.trace.add(question.options.session or client, answer)
            done(answer)

        self.batcher.submit(question, seen_by_the_monitor)

    def _action(self, answer: Answer, flat: bool, single: bool) -> dict[str, Any]:
        chunk = answer.chunk[0] if single else answer.chunk
        return {
            f"action.{name}" if flat else name: chunk[..., start:end]
            for name, (start, end) in self.layout.action.items()
        }

    def _info(self, question: Question, answer: Answer, latency_ms: float) -> dict[str, Any]:
        info: dict[str, Any] = {
            "server": _SERVER,
            "n": question.options.candidates,
            "chosen": answer.chosen,
            "seeds": list(question.options.seeds),
            "n_action_steps": self.policy.config.n_action_steps,
            "latency_ms": latency_ms,
            "decided_together": answer.rows,
        }
        for name in ("scores", "q", "value", "disagreement", "distance"):
            if (values := getattr(answer, name)) is not None:
                info[name] = values
        if answer.candidates is not None:
            info["candidates"] = {
                name: np.ascontiguousarray(answer.candidates[..., start:end])
                for name, (start, end) in self.layout.action.items()
            }
        return info


def _failure(error: DeasError) -> bytes:
    said: dict[str, Any] = {"error": str(error), "server": _SERVER}
    return pack(said | {"busy": True} if isinstance(error, Busy) else said)
