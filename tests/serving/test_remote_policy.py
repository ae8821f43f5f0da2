"""A policy behind a server, guided here: candidates over the wire, the critic beside the robot."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from groot_cases import NANO, config, observation
from wire_cases import ask

from deas_vla.errors import DeasError
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.guidance.noise import CandidateNoise
from deas_vla.policies.config import ServerConfig, load_vla
from deas_vla.policies.remote.adapter import RemoteVLA
from deas_vla.policies.remote.client import PolicyClient
from deas_vla.policies.vla import VLA
from deas_vla.serving.zmq_server import ZmqServer

TASKS = ["move the red cube", "push the red cube"]


@pytest.fixture(scope="module")
def backbone() -> VLA:
    return load_vla(config())


def look() -> dict[str, Any]:
    return observation(2) | {"task": TASKS}


def test_a_critic_here_guides_a_policy_there(server: ZmqServer, policy: ValueGuidedPolicy) -> None:
    """Every candidate is the served policy's own for that seed; the choice is the critic's here."""
    vla = load_vla(
        config(family="remote", server=ServerConfig(port=server.port, timeout_s=60)),
        dataset_stats=policy.dataset_stats,
    )
    assert isinstance(vla, RemoteVLA) and vla.spec.action_horizon == 16
    guided = ValueGuidedPolicy(policy.config, vla, policy.critic)
    decision = guided.decide(look(), CandidateNoise([1, 2]), 4)
    assert decision.candidates.shape == (2, 4, 16, 7)

    seeds = [int(decision_seed(vla, seed)) for seed in (1, 2)]
    local = policy.decide(look(), CandidateNoise(seeds), 4)
    torch.testing.assert_close(decision.candidates, local.candidates, atol=1e-5, rtol=0)
    assert decision.scores is not None and local.scores is not None
    torch.testing.assert_close(decision.scores, local.scores, atol=1e-4, rtol=0)
    assert decision.chosen.tolist() == local.chosen.tolist()
    few = guided.decide(look(), CandidateNoise([1, 2]), 2)  # candidate k is the same for every N
    torch.testing.assert_close(few.candidates, decision.candidates[:, :2], atol=1e-5, rtol=0)
    with pytest.raises(DeasError, match="use a whole number, 1 to 6"):
        guided.decide(look(), CandidateNoise([1, 2]), 7)


def decision_seed(vla: RemoteVLA, seed: int) -> int:
    from deas_vla.policies.remote.adapter import _seed

    return _seed(CandidateNoise([seed]).draw(1, vla.spec.noise_shape)[0])


class Foreign(PolicyClient):
    """NVIDIA's server, as far as its replies go: no options, batches only where it takes them."""

    def __init__(self, service: Any, generation: str, batches: bool) -> None:
        super().__init__(generation=generation)
        self.service, self.batches, self.asked = service, batches, 0

    def call(self, endpoint: str, data: Any = None) -> Any:
        if endpoint == "ping":
            return {"status": "ok", "message": "Server is running"}
        if endpoint == "get_action":
            observation = data if self.generation == "n1.5" else data["observation"]
            state = observation.get("state.eef_pos", observation.get("state", {}).get("eef_pos"))
            self.asked += 1
            if not self.batches and len(state) > 1:
                raise DeasError("server answered: batch size 1 is supported")
        reply = ask(self.service, {"endpoint": endpoint, "data": data})
        if isinstance(reply, dict) and "error" in reply:
            raise DeasError(reply["error"])
        return reply


@pytest.mark.parametrize(
    ("generation", "batches", "requests"), [("n1.7", True, 1), ("n1.5", False, 6)]
)
def test_servers_of_others_are_asked_as_they_can(
    service: Any, backbone: VLA, generation: str, batches: bool, requests: int
) -> None:
    client = Foreign(service, generation, batches)
    vla = RemoteVLA(backbone, client, action_dim=7)
    before = client.asked
    noise = torch.zeros(2, 3, *vla.spec.noise_shape)
    chunks = vla.sample(vla.encode(look()), noise)
    assert client.asked - before == requests
    assert chunks.shape == (2, 3, 16, 7) and bool(chunks.isfinite().all())
    assert len({tuple(c.flatten().tolist()) for c in chunks.flatten(0, 1)}) == 6  # all drawn anew
    encoding = vla.encode(look())
    sent = vla._message(vla._look(encoding), np.array([1]))
    tasks = sent.get("annotation.human.task_description") or sent["language"]["task"][0]
    assert tasks == [TASKS[1]]


def test_what_a_remote_policy_cannot_do_is_told(service: Any, backbone: VLA) -> None:
    client = Foreign(service, "n1.7", batches=True)
    with pytest.raises(DeasError, match="has 7 action dimensions, 6 are wanted"):
        RemoteVLA(backbone, client, action_dim=6)
    vla = RemoteVLA(backbone, client, action_dim=7)
    with pytest.raises(DeasError, match="needs the pictures"):
        vla.sample(backbone.encode(look()), torch.zeros(2, 1, 1, 8))
    with pytest.raises(DeasError, match="is not trained here"):
        vla.flow_matching_loss(backbone.encode(look()), torch.zeros(1), torch.zeros(1))
    with pytest.raises(DeasError, match="NO_SUCH_TOKEN is not set"):
        load_vla(config(family="remote", server=ServerConfig(token_variable="NO_SUCH_TOKEN")))
    with pytest.raises(DeasError, match="with an adapter"):
        load_vla(config(family="remote"), adapter=Path(NANO))
