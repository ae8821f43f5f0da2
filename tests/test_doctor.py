"""The doctor finds what is wrong, and goes on."""

import json
import shutil
from pathlib import Path

import pytest

from deas_vla.doctor import BAD, OK, DoctorConfig, bundle, examine, main, packages
from deas_vla.doctor import dataset as dataset_lines


def test_a_sound_bundle_and_dataset(
    bundle_dir: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = list(examine(DoctorConfig(dataset=tiny_dataset, bundle=str(bundle_dir))))
    said = "\n".join(map(str, lines))
    assert all("\n" not in str(line) for line in lines)
    assert "6 episodes (3 successful)" in said and "embodiment 'robosuite_panda'" in said
    assert [str(line) for line in lines if line.state == BAD and "missing" not in line.what] == []


@pytest.fixture
def bundle_dir(bundle: Path) -> Path:
    return bundle


def test_a_half_bundle_and_a_lost_dataset(
    bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half"
    shutil.copytree(bundle_dir, half, ignore=shutil.ignore_patterns("cache", "checkpoints"))
    next((half / "critic").glob("*.safetensors")).write_bytes(b"")
    config = DoctorConfig(dataset=tmp_path / "nowhere", bundle=str(half))
    with pytest.raises(SystemExit) as ended:
        main(config)
    assert ended.value.code == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith(BAD)]
    assert any("half-written" in line and "is altered" in line for line in bad)
    assert any("nowhere" in line for line in bad)


def test_a_bundle_of_other_versions_or_another_base(bundle_dir: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(bundle_dir, old, ignore=shutil.ignore_patterns("cache", "checkpoints"))
    manifest = json.loads((old / "bundle.json").read_text())
    manifest["versions"]["torch"] = "1.0.0"
    manifest["backbone"] = "0" * 64
    (old / "bundle.json").write_text(json.dumps(manifest))
    lines = []
    with pytest.raises(Exception, match="made over another backbone"):
        for line in bundle(str(old)):
            lines.append(str(line))
    assert any("was made with torch 1.0.0" in line for line in lines)


def test_packages_out_of_range_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=99", "nowhere>=1", 'other>=1; extra == "serving"', 'x>=1; extra == "all"']
    monkeypatch.setattr("deas_vla.doctor.metadata.requires", lambda name: asked)
    lines = [str(line) for line in packages()]
    assert lines[0].startswith("bad  numpy ") and ">=99 is wanted" in lines[0]
    assert "bad  nowhere missing: run make install" in lines
    assert "note other missing: pip install 'lerobot_policy_deas_vla[serving]'" in lines
    assert lines[-1].startswith(OK)


def test_a_dataset_of_successes_alone_is_noted(tmp_path: Path) -> None:
    from recipe_cases import record

    [line] = list(dataset_lines(record(tmp_path / "one", episodes=1)))[-1:]
    assert "all of its episodes succeed" in str(line)
