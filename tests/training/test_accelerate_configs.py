"""The ready accelerate configs and the SLURM script: accelerate takes them, and they do launch."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes/accelerate"
SLURM = CONFIGS / "slurm.sh"
PROBE = """
import torch
from accelerate import Accelerator
accelerator = Accelerator()
total = accelerator.reduce(torch.ones(1, device=accelerator.device))
if accelerator.is_main_process:
    print("probe", accelerator.num_processes, int(total), accelerator.mixed_precision)
accelerator.end_training()
"""


def load(name: str) -> ClusterConfig:
    return load_config_from_file(str(CONFIGS / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [
        ("one_gpu", DistributedType.NO, 1, 1),
        ("eight_gpus", DistributedType.MULTI_GPU, 1, 8),
        ("fsdp", DistributedType.FSDP, 1, 8),
        ("two_nodes", DistributedType.MULTI_GPU, 2, 16),
    ],
)
def test_accelerate_reads_each_config(
    name: str, kind: DistributedType, machines: int, processes: int
) -> None:
    config = load(name)  # refuses unknown keys
    assert isinstance(config, ClusterConfig)
    assert (config.distributed_type, config.num_machines) == (kind, machines)
    assert (config.num_processes, config.mixed_precision) == (processes, "bf16")


def test_every_config_is_tested() -> None:
    tested = {"one_gpu", "eight_gpus", "fsdp", "two_nodes"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == tested


def test_fsdp_wraps_blocks_that_the_policy_has() -> None:
    from lerobot.policies.groot.action_head import cross_attention_dit
    from transformers.models.qwen3_vl import modeling_qwen3_vl

    fsdp = load("fsdp").fsdp_config
    names = fsdp["fsdp_transformer_layer_cls_to_wrap"].split(",")
    assert names[0] == "BasicTransformerBlock"
    for name in names:
        assert hasattr(cross_attention_dit, name) or hasattr(modeling_qwen3_vl, name)
    assert fsdp["fsdp_version"] == 2  # what test_processes.py trains, stops and resumes
    assert fsdp["fsdp_state_dict_type"] == "SHARDED_STATE_DICT"


@pytest.mark.parametrize(("name", "processes"), [("one_gpu", 1), ("eight_gpus", 2)])
def test_accelerate_launches_a_script_by_the_config(
    name: str, processes: int, tmp_path: Path
) -> None:
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    # The file as it is, on the processor: --cpu would start one process whatever is asked for.
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(CONFIGS / f"{name}.yaml"), "--num_processes", str(processes)]
    command += ["--main_process_port", "0"]  # a free one: other launchers may run on this machine
    done = subprocess.run(
        [*command, str(script)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"probe {processes} {processes} bf16" in done.stdout


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on PATH")


@needs_bash
def test_the_slurm_script_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)


def stub(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """SLURM's commands and accelerate as stubs that log how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "log"
    stub(folder, "srun", f'echo $$ > {tmp_path}/step; shift; SLURM_NODEID=1 exec "$@"')
    stub(folder, "scontrol", f'[[ $1 = show ]] && echo first || echo "scontrol $*" >> {log}')
    stub(folder, "scancel", f'echo "scancel $*" >> {log}; kill -TERM "$(cat {tmp_path}/step)"')
    stub(
        folder,
        "accelerate",
        f'echo "accelerate $*" >> {log}\n'
        'trap "exit 1" TERM\n'  # as the launcher does where its processes have saved and left
        "for _ in $(seq ${SECONDS_TO_RUN:-0}0); do sleep 0.1; done",
    )
    return folder


def slurm(cluster: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PATH": f"{cluster}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "first,second",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_PER_NODE": "h100:4",
        **more,
    }
    return subprocess.Popen(["bash", str(SLURM), *arguments], cwd=ROOT, env=environment, text=True)


@needs_bash
def test_slurm_starts_one_launcher_a_node_with_its_rank(cluster: Path) -> None:
    assert slurm(cluster, "--output_dir", "with space").wait(60) == 0
    called = (cluster.parent / "log").read_text()
    assert "--num_machines 2 --num_processes 8 --machine_rank 1" in called
    assert "--main_process_ip first --main_process_port 24242" in called
    assert "finetune_groot.py --output_dir with space" in called
    assert "requeue" not in called


@needs_bash
def test_slurm_passes_sigterm_on_waits_and_requeues(cluster: Path) -> None:
    job = slurm(cluster, SECONDS_TO_RUN="30")
    log = cluster.parent / "log"
    deadline = time.monotonic() + 30
    while not (log.exists() and "accelerate" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    job.wait(30)
    lines = log.read_text().splitlines()
    assert lines[1:] == ["scancel --signal=TERM 4242.0", "scontrol requeue 4242"]
