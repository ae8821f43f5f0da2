import json
import multiprocessing
import os
import shutil

import numpy as np
import pytest
import torch

from deas_vla.data import feature_cache, feature_files
from deas_vla.data.feature_cache import FeatureCache
from deas_vla.errors import DeasError

LENGTHS = (4, 2, 5, 3)
DIM = 6
FINGERPRINT = {"backbone": "abc", "pooling": "mean"}


def make_cache(directory, **changes):
    return FeatureCache(directory, FINGERPRINT | changes, LENGTHS, DIM)


def features(episode):
    generator = np.random.default_rng(episode)
    return generator.normal(size=(LENGTHS[episode], DIM)).astype(np.float16)


def fill(cache, episodes=(0, 1, 2, 3)):
    for episode in episodes:
        cache.write(episode, features(episode))
    return cache


EXPECTED = np.concatenate([features(i) for i in range(len(LENGTHS))])


def test_assembles_in_episode_order_and_removes_shards(tmp_path):
    cache = fill(make_cache(tmp_path), [2, 0, 3, 1])
    got = cache.assemble()
    assert isinstance(got, np.memmap) and got.dtype == np.float16 and not got.flags.writeable
    np.testing.assert_array_equal(got, EXPECTED)
    assert sorted(os.listdir(tmp_path)) == ["features.npy", "index.json"]


def test_second_run_is_free(tmp_path):
    fill(make_cache(tmp_path)).assemble()
    before = (tmp_path / "features.npy").stat().st_mtime_ns
    again = make_cache(tmp_path)
    assert again.missing_episodes() == [] and again.required_bytes() == 0
    np.testing.assert_array_equal(again.assemble(), EXPECTED)
    assert (tmp_path / "features.npy").stat().st_mtime_ns == before


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    """Hashing reads all bytes, of a terabyte in the end."""
    hashed = []  # again: the first time is while a shard is written
    checksum = feature_cache.checksum
    monkeypatch.setattr(
        feature_cache, "checksum", lambda array: hashed.append(len(array)) or checksum(array)
    )
    cache = fill(make_cache(tmp_path))
    assert cache.missing_episodes() == [] and make_cache(tmp_path).missing_episodes() == []
    cache.check_disk_space()
    cache.assemble()
    again = make_cache(tmp_path)
    assert again.missing_episodes() == []
    again.assemble()
    assert hashed == []
    os.utime(tmp_path / "features.npy")  # touched: it may be another file
    assert make_cache(tmp_path).missing_episodes() == [] and hashed == list(LENGTHS)


def test_the_type_of_the_numbers_is_recorded(tmp_path):
    make_cache(tmp_path)
    path = tmp_path / "index.json"
    index = json.loads(path.read_text())
    assert index["fingerprint"].pop("dtype") == "float16"
    path.write_text(json.dumps(index))
    make_cache(tmp_path)  # of before it was recorded: float16 then, too
    index["fingerprint"]["dtype"] = "float32"
    path.write_text(json.dumps(index))
    with pytest.raises(DeasError, match="made with dtype=float32, this run has dtype=float16"):
        make_cache(tmp_path)


def test_episodes_that_cannot_be_read_are_remembered(tmp_path):
    cache = fill(make_cache(tmp_path), [0, 2, 3])
    cache.write_unreadable(1, "video x lacks frame 7")
    assert cache.missing_episodes() == []
    for known in (cache, make_cache(tmp_path)):
        assert known.unreadable == {1: "video x lacks frame 7"}
    got = cache.assemble()
    assert make_cache(tmp_path).unreadable == {1: "video x lacks frame 7"}
    assert not got[4:6].any() and got[:4].any() and got[6:].any()


def test_resumes_with_what_is_missing(tmp_path):
    fill(make_cache(tmp_path), [0, 2])
    assert make_cache(tmp_path).missing_episodes() == [1, 3]
    with pytest.raises(DeasError, match=r"lacks 2 of 4 episodes \(first: 1\)"):
        make_cache(tmp_path).assemble()
    with pytest.raises(DeasError, match="is not complete"):
        make_cache(tmp_path).load()


@pytest.mark.parametrize("cut", [0, 10, 130])
def test_torn_shard_is_redone(tmp_path, cut):
    fill(make_cache(tmp_path))
    shard = tmp_path / "episode-000002.npy"
    shard.write_bytes(shard.read_bytes()[:cut])
    cache = make_cache(tmp_path)
    assert cache.missing_episodes() == [2]
    np.testing.assert_array_equal(fill(cache, [2]).assemble(), EXPECTED)


def test_flipped_bit_is_redone(tmp_path):
    fill(make_cache(tmp_path))
    shard = tmp_path / "episode-000001.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert make_cache(tmp_path).missing_episodes() == [1]


def test_missing_or_torn_record_is_redone(tmp_path):
    fill(make_cache(tmp_path))
    (tmp_path / "episode-000000.json").unlink()
    (tmp_path / "episode-000003.json").write_text("{")
    assert make_cache(tmp_path).missing_episodes() == [0, 3]


def test_killed_between_joining_and_recording(tmp_path):
    cache = fill(make_cache(tmp_path))
    shards = tmp_path.parent / f"{tmp_path.name}-shards"
    shutil.copytree(tmp_path, shards)
    cache.assemble()
    shutil.copy(tmp_path / "features.npy", shards)  # renamed into place, index not yet written
    again = make_cache(shards)
    assert again.missing_episodes() == []
    np.testing.assert_array_equal(again.assemble(), EXPECTED)


def test_damaged_assembled_file_keeps_what_is_whole(tmp_path):
    fill(make_cache(tmp_path)).assemble()
    path = tmp_path / "features.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # in the last episode
    path.write_bytes(data)
    cache = make_cache(tmp_path)
    assert cache.missing_episodes() == [3]
    np.testing.assert_array_equal(fill(cache, [3]).assemble(), EXPECTED)


def test_copied_cache_stays_valid(tmp_path):
    fill(make_cache(tmp_path / "a")).assemble()
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    cache = make_cache(tmp_path / "b")
    assert cache.missing_episodes() == []
    np.testing.assert_array_equal(cache.assemble(), EXPECTED)


def test_leftovers_of_killed_writers_go_away(tmp_path):
    cache = fill(make_cache(tmp_path))
    (tmp_path / ".episode-000001.123.npy").write_bytes(b"half")
    cache.assemble()
    assert sorted(os.listdir(tmp_path)) == ["features.npy", "index.json"]


def test_other_fingerprint_is_refused_naming_both(tmp_path):
    make_cache(tmp_path)
    with pytest.raises(
        DeasError, match="made with backbone=abc, this run has backbone=xyz"
    ) as error:
        make_cache(tmp_path, backbone="xyz")
    assert "\n" not in str(error.value)
    with pytest.raises(DeasError, match="made with feature_dim=6, this run has feature_dim=7"):
        FeatureCache(tmp_path, FINGERPRINT, LENGTHS, 7)


def test_shards_of_another_fingerprint_do_not_count_even_without_an_index(tmp_path):
    fill(make_cache(tmp_path))
    (tmp_path / "index.json").unlink()
    assert make_cache(tmp_path, backbone="xyz").missing_episodes() == [0, 1, 2, 3]


def write_part(directory, part):
    fill(make_cache(directory), range(part, len(LENGTHS), 2))


def test_several_processes_write(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=write_part, args=(tmp_path, part)) for part in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    np.testing.assert_array_equal(make_cache(tmp_path).assemble(), EXPECTED)


def test_disk_need_is_told_and_checked(tmp_path, monkeypatch):
    cache = fill(make_cache(tmp_path), [0])
    assert cache.required_bytes() == (14 + 10) * DIM * 2  # features.npy and the missing shards
    assert "14 frames x 6 float16 (12 bytes a frame)" in cache.check_disk_space()
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DeasError, match="disk too small for features"):
        cache.check_disk_space()


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    cache = make_cache(tmp_path)

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_files, "_write_header", full)
    with pytest.raises(DeasError, match="No space left on device"):
        cache.write(0, features(0))
    assert os.listdir(tmp_path) == ["index.json"]


def test_killed_while_joining(tmp_path, monkeypatch):
    """Shards go as they are joined; what is in the file by then is found there by its checksum."""
    cache = fill(make_cache(tmp_path))
    monkeypatch.setattr(feature_cache, "JOIN_BYTES", 1)  # each shard is removed at once
    write, joined = feature_files.RowFile.write, []

    def killed(file, at, rows):
        if len(joined) == 2:
            write(file, at, rows[:1])  # half of the third
            raise KeyboardInterrupt
        joined.append(at)
        write(file, at, rows)

    monkeypatch.setattr(feature_files.RowFile, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.assemble()
    monkeypatch.setattr(feature_files.RowFile, "write", write)
    assert sorted(path.name for path in tmp_path.glob("episode-*.npy")) == [
        "episode-000002.npy",
        "episode-000003.npy",
    ]
    again = make_cache(tmp_path)
    assert again.missing_episodes() == []
    with (tmp_path / "features.npy").open("r+b") as file:  # a bit of the second episode flips
        file.seek(-DIM * 2 * sum(LENGTHS[2:]) - 1, 2)
        file.write(b"?")
    assert make_cache(tmp_path).missing_episodes() == [1]
    np.testing.assert_array_equal(fill(again, [1]).assemble(), EXPECTED)
    assert sorted(os.listdir(tmp_path)) == ["features.npy", "index.json"]


def test_joining_needs_no_room_for_a_second_copy(tmp_path, monkeypatch):
    """A disk that holds all shards once and the part that is joined at a time."""
    monkeypatch.setattr(feature_cache, "JOIN_BYTES", 20)
    cache, row = make_cache(tmp_path), DIM * 2
    assert cache.required_bytes() == 14 * row + 20 + 5 * row
    fill(cache)
    sync, blocks = feature_files.RowFile.sync, []

    def measured(file):
        sync(file)
        paths = [tmp_path / "features.npy", *tmp_path.glob("episode-*.npy")]
        shards = sum(path.stat().st_size - 128 for path in paths[1:])
        blocks.append(shards)

    monkeypatch.setattr(feature_files.RowFile, "sync", measured)
    cache.assemble()
    assert blocks == [14 * row, 10 * row, 8 * row, 3 * row]


def test_bfloat16_is_kept_bit_by_bit(tmp_path):
    """What float16 has no room for, in the precision of the backbone; and infinite is refused."""
    values = torch.tensor([[1e30, -1e-30, 3.14, 70_000.0]]).bfloat16()
    cache = FeatureCache(tmp_path, FINGERPRINT, (1,), 4, "bfloat16")
    cache.write(0, values.view(torch.uint16).numpy())
    got = torch.from_numpy(np.array(cache.assemble())).view(torch.bfloat16)
    assert torch.equal(got, values)
    with pytest.raises(DeasError, match="made with dtype=bfloat16, this run has dtype=float16"):
        FeatureCache(tmp_path, FINGERPRINT, (1,), 4)
    values[0, 2] = float("inf")
    with pytest.raises(DeasError, match="frame 0 is not finite in bfloat16"):
        cache.write(0, values.view(torch.uint16).numpy())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 5)), r"shape \(4, 5\), expected \(4, 6\)"),
        (np.full((4, DIM), np.nan), "episode 0 frame 0 is not finite"),
        (np.where(np.arange(4)[:, None] == 2, 1e6, np.ones((4, DIM))), "frame 2 is not finite"),
    ],
)
def test_bad_features_are_refused(tmp_path, values, message):
    with pytest.raises(DeasError, match=message):
        make_cache(tmp_path).write(0, values)


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeasError, match="cannot be made"):
        make_cache(tmp_path / "file" / "cache")
