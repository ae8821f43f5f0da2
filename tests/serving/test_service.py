"""What GR00T's clients get for their messages, both generations, past any socket."""

import json
from typing import Any

import numpy as np
import pytest
from serving_cases import TOKEN, service_of
from wire_cases import CAMERAS, GROUPS, ask, flat, nested

from deas_vla.errors import DeasError
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.guidance.noise import CandidateNoise
from deas_vla.guidance.speed import SpeedConfig, SpeedOverride
from deas_vla.policies.remote.wire import pack, unpack
from deas_vla.serving.config import ServeConfig
from deas_vla.serving.deciding import Decider
from deas_vla.serving.running import make_service
from deas_vla.serving.service import Service

ACTIONS = {"eef_delta": 6, "gripper": 1}


def get_action(observation: Any, **options: Any) -> dict[str, Any]:
    data = {"observation": observation, "options": options or None}
    return {"endpoint": "get_action", "data": data}


def joined(action: dict[str, Any]) -> np.ndarray:
    return np.concatenate([action[name] for name in ACTIONS], axis=-1)


def test_n17_nested_and_flat_say_what_the_policy_decides(
    service: Service, policy: ValueGuidedPolicy
) -> None:
    """A reply is the local decision of the same seed; options and info travel."""
    import torch

    look = nested(1)
    action, info = ask(service, get_action(look, candidates=4, seed=5))
    batch: dict[str, Any] = {
        f"observation.images.{name}": torch.from_numpy(look["video"][name][:, 0]).permute(
            0, 3, 1, 2
        )
        for name in CAMERAS
    }
    state = np.concatenate([look["state"][name][:, 0] for name in GROUPS], axis=-1)
    batch |= {"observation.state": torch.from_numpy(state), "task": ["lift the red cube"]}
    local = policy.decide(batch, CandidateNoise([5]), 4)
    assert {name: value.shape for name, value in action.items()} == {
        name: (1, 16, width) for name, width in ACTIONS.items()
    }
    assert all(value.dtype == np.float32 for value in action.values())
    np.testing.assert_array_equal(joined(action), local.chunk.numpy())
    assert info["chosen"].tolist() == local.chosen.tolist() and info["n"] == 4
    assert local.scores is not None and local.members is not None
    np.testing.assert_array_equal(info["scores"], local.scores.numpy())
    chosen = local.members[:, 0, int(local.chosen)]
    assert info["q"] == pytest.approx([float(chosen.min())])
    assert info["disagreement"] == pytest.approx([float(chosen.std(correction=0))], abs=1e-6)
    assert policy.critic is not None and local.feature is not None
    far = policy.critic.normalizer.distance(local.feature, local.state)
    assert info["distance"] == pytest.approx(far.tolist()) and info["distance"] > 0
    assert info["latency_ms"] > 0 and np.isfinite(info["value"]).all()

    told = flat(look)
    again, _ = ask(service, get_action(told, candidates=4, seed=5))
    assert set(again) == {f"action.{name}" for name in ACTIONS}
    for name in ACTIONS:
        np.testing.assert_array_equal(again[f"action.{name}"], action[name])


def test_n15_gets_its_actions_alone(service: Service) -> None:
    """Flat data, (1, D) states of one robot; no endpoint is get_action."""
    action = ask(service, {"data": flat(nested(1), robots=False)})
    assert {name: value.shape for name, value in action.items()} == {
        f"action.{name}": (16, width) for name, width in ACTIONS.items()
    }
    batched = ask(service, {"endpoint": "get_action", "data": flat(nested(1, robots=2))})
    assert batched["action.eef_delta"].shape == (2, 16, 6)


def test_modality_config_of_both_generations(policy: ValueGuidedPolicy, service: Service) -> None:
    asked = {"endpoint": "get_modality_config"}
    found = ask(service, asked)["action"]
    values = {"delta_indices": list(range(16)), "modality_keys": list(ACTIONS)}
    assert found == {"__ModalityConfig_class__": True, "as_json": values}
    old = ask(service_of(policy, text_modalities=True), asked)["video"]["as_json"]
    assert json.loads(old) == {"delta_indices": [0], "modality_keys": list(CAMERAS)}


def test_ping_tells_who_serves(service: Service, policy: ValueGuidedPolicy) -> None:
    ask(service, get_action(nested(1)))
    found = ask(service, {"endpoint": "ping"})
    assert found["status"] == "ok" and found["message"] == "Server is running"
    assert found["model"] == "groot_nano" and found["device"] == "cpu" and found["candidates"] == 2
    assert 0 < found["p50_ms"] <= found["p95_ms"] and found["answered"] == 1
    assert found["calls_by_rows"] == {"1": 1}
    assert ask(service, {"endpoint": "reset", "data": {"options": None}}) == {}


def test_options_change_the_decision_and_are_checked(service: Service) -> None:
    look = nested(2)
    same = [ask(service, get_action(look, candidates=3, seed=7))[0] for _ in range(2)]
    np.testing.assert_array_equal(joined(same[0]), joined(same[1]))
    unseeded = [joined(ask(service, get_action(look))[0]) for _ in range(2)]
    assert not np.array_equal(*unseeded)
    later = joined(ask(service, get_action(look, candidates=3, seed=7, plan=1))[0])
    assert not np.array_equal(later, joined(same[0]))
    action, info = ask(
        service, get_action(look, candidates=3, seed=7, selection="medoid", return_candidates=True)
    )
    assert "scores" not in info and np.isfinite(info["q"]).all()
    kept = info["candidates"]["eef_delta"]
    assert kept.shape == (1, 3, 16, 6)
    np.testing.assert_array_equal(kept[0, info["chosen"][0]], action["eef_delta"][0])
    hot = {ask(service, get_action(look, seed=k, candidates=6, temperature=1e6))[1]["chosen"][0]
           for k in range(12)}  # fmt: skip
    assert len(hot) > 2  # drawn, not the best of nested candidates
    for name, value, said in (
        ("candidates", 0, "option candidates 0: use a whole number, 1 to 6"),
        ("candidates", True, "option candidates True: use a whole number"),
        ("temperature", float("nan"), "option temperature nan: use a finite number"),
        ("selection", "luck", "selection.rule 'luck' is unknown"),
        ("seed", -1, "option seed -1: use a whole number"),
        ("steps", 3, "option 'steps' is unknown"),
        ("embodiment", "gr1", "embodiment 'gr1' is not served here"),
    ):
        assert ask(service, get_action(look, **{name: value}))["error"].startswith(said)


def without(observation: dict[str, Any], modality: str, name: str) -> dict[str, Any]:
    kept = {key: value for key, value in observation[modality].items() if key != name}
    return observation | {modality: kept}


def changed(observation: dict[str, Any], modality: str, name: str, value: Any) -> dict[str, Any]:
    return observation | {modality: observation[modality] | {name: value}}


LOOK = nested(3)
PICTURE = LOOK["video"]["agentview"]
BAD = {
    "no camera": (without(LOOK, "video", "agentview"), "observation lacks video.agentview"),
    "float picture": (
        changed(LOOK, "video", "agentview", PICTURE.astype(np.float32)),
        "video.agentview has dtype float32: send uint8",
    ),
    "channels first": (
        changed(LOOK, "video", "agentview", np.moveaxis(PICTURE, -1, 2)),
        "video.agentview has shape (1, 1, 3, 64, 64): send",
    ),
    "history": (
        changed(LOOK, "video", "agentview", PICTURE.repeat(2, axis=1)),
        "video.agentview holds 2 pictures",
    ),
    "no state": (without(LOOK, "state", "eef_pos"), "observation lacks state.eef_pos"),
    "narrow state": (
        changed(LOOK, "state", "eef_pos", np.zeros((1, 1, 2), np.float32)),
        "state.eef_pos has shape (1, 1, 2): send (robots, 1, 3)",
    ),
    "text state": (
        changed(LOOK, "state", "eef_pos", np.full((1, 1, 3), "a")),
        "state.eef_pos has dtype <U1",
    ),
    "nan": (
        changed(LOOK, "state", "eef_pos", np.full((1, 1, 3), np.nan, np.float32)),
        "state holds a value that is not a finite number",
    ),
    "other robots": (
        changed(LOOK, "video", "agentview", PICTURE.repeat(2, axis=0)),
        "video.agentview is of 2 robots, the state of 1",
    ),
    "one instruction for two": (
        nested(3, robots=2) | {"language": {"task": [["lift the red cube"]]}},
        "language.task holds 1 instructions for 2 robots",
    ),
    "no instruction": (LOOK | {"language": {}}, "observation has no instruction"),
    "embodiment": (LOOK | {"embodiment_tag": "gr1"}, "embodiment 'gr1' is not served here"),
    "too many": (nested(3, robots=9), "9 observations in one request: send 1 to 8"),
    "no map": ([1], "observation is list, not a map"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_observation_is_one_clear_line(service: Service, case: str) -> None:
    observation, said = BAD[case]
    error = ask(service, get_action(observation))["error"]
    assert error.startswith(said) and "\n" not in error


def test_generations_are_not_mixed(service: Service) -> None:
    mixed = {"observation": LOOK} | flat(LOOK)
    assert "generations are mixed" in ask(service, {"data": mixed})["error"]
    assert "get_action's data is NoneType" in ask(service, {"endpoint": "get_action"})["error"]
    assert "'play' is unknown" in ask(service, {"endpoint": "play"})["error"]
    assert "kill needs --allow_kill=true" in ask(service, {"endpoint": "kill"})["error"]


def test_a_token_is_asked_for(policy: ValueGuidedPolicy) -> None:
    service = service_of(policy, token=TOKEN)
    for told in (None, "guess", 3):
        request = {"endpoint": "ping"} if told is None else {"endpoint": "ping", "api_token": told}
        assert "Invalid API token" in ask(service, request)["error"]
    assert ask(service, {"endpoint": "ping", "api_token": TOKEN})["status"] == "ok"


TASKS = ("move the red cube", "push the red cube", "put the mug into the sink")  # two are as long


def test_requests_that_wait_together_are_one_call_and_keep_their_own(
    policy: ValueGuidedPolicy,
) -> None:
    """Each row its own pictures, instruction and seed: as when it is asked alone.

    An instruction of another length is decided apart: the head would attend to padding.
    """
    asked = [
        get_action(nested(k, task=TASKS[k % 2 if k < 4 else 2]), candidates=3, seed=10 + k)
        for k in range(5)
    ]
    lone = service_of(policy)
    lone.batcher.start()
    alone = [ask(lone, request) for request in asked]
    swapped = ask(lone, get_action(nested(0, task=TASKS[1]), candidates=3, seed=10))
    lone.batcher.stop()
    assert not np.allclose(joined(swapped[0]), joined(alone[0][0]), atol=1e-3)  # the task matters

    service = service_of(policy)
    replies: dict[int, Any] = {}
    for k, request in enumerate([*asked, get_action(nested(9), candidates=1)]):
        service.handle(pack(request), lambda raw, k=k: replies.update({k: unpack(raw)}))
    service.batcher.start()  # all of them wait
    assert service.batcher.stop()
    assert [replies[k][1]["decided_together"] for k in range(6)] == [4, 4, 4, 4, 1, 1]
    for k in range(5):
        action, info = replies[k]
        np.testing.assert_allclose(joined(action), joined(alone[k][0]), atol=1e-5)
        np.testing.assert_allclose(info["scores"], alone[k][1]["scores"], atol=1e-4)
        assert info["chosen"].tolist() == alone[k][1]["chosen"].tolist()


def test_robots_of_one_request_are_rows_of_their_own(service: Service) -> None:
    two = nested(4, robots=2)
    two["language"]["task"] = [["lift the red cube"], ["open the drawer"]]
    together, _ = ask(service, get_action(two, candidates=2, seed=[3, 4]))
    for row, task in enumerate(["lift the red cube", "open the drawer"]):
        part = {
            key: {name: value[row : row + 1] for name, value in two[key].items()}
            for key in ("video", "state")
        } | {"language": {"task": [[task]]}}
        alone, _ = ask(service, get_action(part, candidates=2, seed=3 + row))
        np.testing.assert_allclose(joined(together)[row], joined(alone)[0], atol=1e-5)


def test_a_full_queue_says_busy(policy: ValueGuidedPolicy) -> None:
    service = service_of(policy, most_waiting=2)
    replies: list[Any] = []
    for _ in range(3):
        service.handle(pack(get_action(nested(1))), lambda raw: replies.append(unpack(raw)))
    assert len(replies) == 1 and replies[0]["busy"] and "2 requests wait" in replies[0]["error"]
    service.batcher.start()
    service.batcher.stop()  # drains
    assert len(replies) == 3 and all(isinstance(reply, list) for reply in replies[1:])
    service.handle(pack(get_action(nested(1))), lambda raw: replies.append(unpack(raw)))
    assert "stopping" in replies[3]["error"]


def test_what_waited_too_long_is_told(policy: ValueGuidedPolicy) -> None:
    service = service_of(policy, timeout_s=1e-9)
    service.batcher.start()
    assert "waited longer" in ask(service, get_action(nested(1)))["error"]
    service.batcher.stop()


def test_one_failing_question_does_not_take_its_company_along(policy: ValueGuidedPolicy) -> None:
    """The policy fails on one of three: the other two are answered."""
    service, decider = service_of(policy), Decider(policy)

    def failing(questions: Any) -> Any:
        if any(question.options.seeds[0] == 2 for question in questions):
            raise ZeroDivisionError
        return decider(questions)

    service.batcher._decide = failing
    replies: dict[int, Any] = {}
    for seed in (1, 2, 3):
        request = pack(get_action(nested(1), seed=seed))
        service.handle(request, lambda raw, seed=seed: replies.update({seed: unpack(raw)}))
    service.batcher.start()
    service.batcher.stop()
    assert "policy failed (ZeroDivisionError)" in replies[2]["error"]
    assert isinstance(replies[1], list) and isinstance(replies[3], list)


def test_flags_that_a_server_cannot_follow_are_refused(
    policy: ValueGuidedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = policy.config
    before = (own.candidates, own.speed)
    try:
        with pytest.raises(DeasError, match=r"most_candidates 1 are fewer than the 3 of a request"):
            make_service(ServeConfig(candidates=3, most_candidates=1), policy)
        with pytest.raises(DeasError, match=r"guidance\.warm_every: a server keeps no robot's"):
            make_service(ServeConfig(guidance=SpeedOverride(warm_every=2)), policy)
        own.speed = SpeedConfig(warm_every=2)  # what the bundle says for a simulator
        make_service(ServeConfig(candidates=2), policy)
        assert own.speed.warm_every == 0

        measured: list[int] = []
        monkeypatch.setattr(
            policy, "start", lambda batch, most: measured.append(len(batch["task"])) or most
        )
        for speed in (SpeedOverride(budget_ms=50), SpeedOverride(budget_ms=50, compile=True)):
            make_service(ServeConfig(candidates=2, batch=4, guidance=speed), policy)
        assert measured == [1, 4]  # a compiled policy fills every decision up
    finally:
        own.candidates, own.speed = before
