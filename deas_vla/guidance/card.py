"""A bundle's model card: what it is, its data, how well it does, what it is not for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deas_vla.critic.base import Critic
from deas_vla.guidance.configuration_guided import ValueGuidedConfig

_MOST_TASKS = 20  # rows of the data's table


def model_card(config: ValueGuidedConfig, critic: Critic | None, provenance: dict[str, Any]) -> str:
    """README.md of a bundle, with the Hub's front matter.

    Args:
        config: How it is run.
        critic: Its critic, if it has one.
        provenance: As in ``bundle.json``; ``data`` says what it was trained on, ``results`` holds
            rows of an evaluation's ``results.json``.
    """
    data = provenance.get("data", {})
    sections = [
        _front(config, data),
        f"# Value-guided {config.vla.family} policy\n",
        f"LoRA adapter and value critic for `{config.vla.path}`, embodiment "
        f"`{config.vla.embodiment}`, made by deas_vla. At each decision {config.candidates} chunks "
        "are sampled from the flow-matching head; "
        f"{_choice(config, critic)}, and {config.n_action_steps} of its steps are executed.\n",
        _results(provenance.get("results", [])),
        _data(data),
        _settings(config, critic),
        _use(config),
        _LIMITS,
    ]
    return "\n".join(section for section in sections if section)


def _front(config: ValueGuidedConfig, data: dict[str, Any]) -> str:
    lines = ["---", "library_name: lerobot", "pipeline_tag: robotics"]
    if config.license:
        lines.append(f"license: {config.license}")
    if not Path(config.vla.path).exists():
        lines += [f"base_model: {config.vla.path}", "base_model_relation: adapter"]
    if "/" in str(data.get("repo_id")) and not str(data["repo_id"]).startswith("local/"):
        lines.append(f"datasets: [{data['repo_id']}]")
    tags = dict.fromkeys(["robotics", "lerobot", "deas_guided", "vla", "offline-rl"])
    tags |= dict.fromkeys([config.vla.family, *(config.tags or [])])
    return "\n".join([*lines, f"tags: [{', '.join(tags)}]", "---", ""])


def _choice(config: ValueGuidedConfig, critic: Critic | None) -> str:
    if critic is None:
        return "there is no critic, so that this is the policy itself"
    if config.selection.rule == "best":
        return "the one with the highest value is chosen"
    return f"one is chosen by the rule `{config.selection.rule}`"


def _results(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "## Results\n\nNot evaluated yet.\n"
    lines = [
        "## Results\n",
        "Success rates in simulation, with 95 % intervals; the difference is paired with the base "
        "policy (N = 1) over the same episodes.\n",
        "| task | N | episodes | success | 95 % interval | difference to N = 1 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate, difference = row.get("success_rate"), row.get("diff_to_base")
        low, high = (100 * bound for bound in row["ci95"])
        cells = [str(row["task"]), str(row["candidates"]), str(row["episodes"])]
        cells += ["-" if rate is None else f"{100 * rate:.0f} %", f"{low:.0f} to {high:.0f} %"]
        if difference is None:
            cells.append("-")
        else:
            low, high = (100 * bound for bound in row["diff_ci95"])
            cells.append(f"{100 * difference:+.0f} points ({low:+.0f} to {high:+.0f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _data(data: dict[str, Any]) -> str:
    lines = [
        "## Data\n",
        f"Dataset `{data.get('repo_id')}`: {data.get('episodes')} episodes, of which "
        f"{data.get('successful_episodes')} successful.\n",
    ]
    tasks = data.get("tasks", [])
    if tasks:
        lines += ["| instruction | episodes | successful |", "|---|---|---|"]
        for task in tasks[:_MOST_TASKS]:
            cells = task["instruction"], task["episodes"], task["successful_episodes"]
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        if len(tasks) > _MOST_TASKS:
            lines.append(f"\n and {len(tasks) - _MOST_TASKS} more instructions.")
        lines.append("")
    return "\n".join(lines)


def _settings(config: ValueGuidedConfig, critic: Critic | None) -> str:
    vla = config.vla
    rows = {
        "base": f"`{vla.path}`, {vla.dtype}",
        "cameras": ", ".join(f"`{key}`" for key in vla.image_keys),
        "state, action": f"{vla.state_dim}, {vla.action_dim} dimensions",
        "adapter": "LoRA, in `policy/`" if config.adapter else "none",
        "candidates": str(config.candidates),
        "executed steps": str(config.n_action_steps),
        "selection": f"`{config.selection.rule}`, ensemble `{config.selection.ensemble}`",
    }
    if critic is not None:
        c = critic.config
        rows |= {
            "critic": f"`{c.algorithm}` on chunks of {c.horizon} steps, in `critic/`",
            "values": f"{critic.representation}, discounts {c.g1} and {c.g2}",
            "feature": f"pooling `{config.pooling.kind}`",
        }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["## Settings\n", "| | |", "|---|---|", *lines, ""])


def _use(config: ValueGuidedConfig) -> str:
    return f"""## Use

With LeRobot and the plugin `lerobot_policy_deas_vla` (deas_vla) installed:

```
lerobot-eval --policy.path=THIS --env.type=... --policy.candidates={config.candidates}
```

```python
from deas_vla.bundle import open_bundle

policy = open_bundle("THIS")  # a directory or a Hub id
policy.reset()
action = policy.select_action(observation)  # (B, {config.vla.action_dim}), environment units
```

The adapter loads with PEFT alone: `peft.PeftModel.from_pretrained(model, ".../policy")`.
`bundle.json` holds the full configuration, seeds, versions and git revision of the run, and the
SHA-256 of every file.
"""


_LIMITS = """## Intended use and limits

For the robot, cameras, control rate and kind of task of the data above, in research and under
supervision. The critic ranks chunks that the policy itself proposes: it cannot make one that none
of the candidates is, and its values mean little on observations unlike its data. Values are no
measure of safety: neither policy nor critic knows forces, people or joint limits, so that a robot
needs limits of its own and someone at the emergency stop. The base checkpoint's licence applies to
what is made from it.
"""
