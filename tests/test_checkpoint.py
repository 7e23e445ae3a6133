"""Tests of checkpoint.py and sealed.py: what is saved comes back, damage is noticed, what is whole is never lost.

python -m pytest tests/test_checkpoint.py
"""

import contextlib
import hashlib
import os
import pickle
import random
import resource
import zipfile
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import pytest
import torch

import sealed
from checkpoint import list_steps, load, load_latest, meant, path_of, save, try_save
from sealed import verify

torch.set_num_threads(1)


def make_state(step, n=100):
    """Every type that a checkpoint may hold; n^2 floats."""
    generator = torch.Generator().manual_seed(step)
    w = torch.randn(n, n, generator=generator)
    return {
        "step": step,
        "model": OrderedDict(w=w, half=w[0].bfloat16(), scalar=torch.tensor(3, dtype=torch.int64), empty=w[:0]),
        "optimizer": {"state": {0: {"exp_avg": w[1:3].double()}}, "betas": (0.9, 0.95), "fused": True, "foreach": None},
        "data": {"history": [(0, "a"), (7, "a:0.5,b:0.5")], "name": "ä"},
    }


def same(a, b):
    """Whether two states are equal in every type, dtype and bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture
def folder(tmp_path):
    """A folder with good checkpoints of steps 100 and 200."""
    for step in (100, 200):
        save(tmp_path / "ckpt", step, make_state(step))
    return tmp_path / "ckpt"


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def flipped(raw, byte, bit):
    return raw[:byte] + bytes([raw[byte] ^ 1 << bit]) + raw[byte + 1 :]


def test_round_trip(tmp_path):
    state = make_state(7)
    path = save(tmp_path / "new" / "ckpt", 7, state)
    assert path == tmp_path / "new" / "ckpt" / "step_00000007.pt" and [p.name for p in path.parent.iterdir()] == [
        path.name
    ]
    latest, latest_path = load_latest(path.parent)
    assert latest_path == path and same(latest, state) and same(load(path), state) and not same(latest, make_state(8))
    assert same(torch.load(path, weights_only=True), state)  # the seal is in nobody's way
    assert zipfile.ZipFile(path).testzip() is None


@pytest.mark.parametrize("n", [10, 3200])  # less than a block; two and a half
def test_the_seal_is_the_digest_of_the_digests_of_blocks(n, tmp_path):
    path = save(tmp_path, 1, make_state(1, n))
    raw, seal = path.read_bytes()[:-75], path.read_bytes()[-75:].decode()
    blocks = [raw[i : i + 2**24] for i in range(0, len(raw), 2**24)]
    digests = "".join(hashlib.sha256(block).hexdigest() for block in blocks)
    assert raw[-2:] == bytes([75, 0]) and seal == f"sha256-16M:{hashlib.sha256(digests.encode()).hexdigest()}"


def test_types_that_could_not_be_read_are_not_written(tmp_path):
    for odd in (Path("x"), {1}, torch.nn.Linear(1, 1), b"x", torch.float32):
        with pytest.raises(AssertionError, match=r"state\['data'\]\[1\]"):
            save(tmp_path, 1, {"data": [0, odd]})
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoints_is_none_and_a_missing_file_an_error(tmp_path):
    assert load_latest(tmp_path) is None and load_latest(tmp_path / "no") is None
    with pytest.raises(ValueError, match="no.pt cannot be read"):
        load(tmp_path / "no.pt")


# Damage


def test_random_bit_flips(folder, capsys):
    path, rng, accepted = path_of(folder, 200), random.Random(0), 0
    raw = path.read_bytes()
    for _ in range(100):
        path.write_bytes(flipped(raw, rng.randrange(len(raw)), rng.randrange(8)))
        state, found = load_latest(folder)
        assert found == path_of(folder, 100) and same(state, make_state(100))
        with contextlib.suppress(Exception):
            accepted += torch.load(path, weights_only=True) is not None
    assert accepted >= 95  # the control: what torch.load alone takes for good
    assert len(capsys.readouterr().err.splitlines()) == 100


def seal_as_before(path):
    """Give a file of torch.save the seal that earlier code gave: one SHA-256 of all bytes."""
    raw = path.read_bytes()[:-2] + bytes([71, 0])
    path.write_bytes(raw + f"sha256:{hashlib.sha256(raw).hexdigest()}".encode())


@pytest.mark.parametrize("kind", ["in one block", "in many blocks", "as before"])
def test_a_flip_in_any_byte(kind, tmp_path, monkeypatch):
    path, state, parsed, rng = tmp_path / "x.pt", {"w": torch.ones(3), "step": 1}, [], random.Random(0)
    if kind == "in many blocks":
        monkeypatch.setattr(sealed, "BLOCK_BYTES", 500)
    torch.save(state, path)
    seal_as_before(path) if kind == "as before" else sealed.seal(path)
    assert same(load(path), state)
    raw = path.read_bytes()
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: parsed.append(args))
    for byte in range(len(raw)):  # zip headers, directory and seal too
        path.write_bytes(flipped(raw, byte, rng.randrange(8)))
        with pytest.raises(ValueError, match=path.name):
            load(path)
    for damaged in (raw[500:1000] + raw[:500] + raw[1000:], raw[500:], raw[:-500], raw[:500] + raw[1000:], raw + raw):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=path.name):
            load(path)
    assert parsed == []  # torch.load never sees what is damaged
    path.write_bytes(raw)
    load(path)
    assert len(parsed) == 1


@pytest.mark.parametrize("size", [0, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, -1, -75])
def test_truncation(size, folder, capsys):
    path = path_of(folder, 200)
    os.truncate(path, size + path.stat().st_size if size < 0 else int(size * path.stat().st_size))
    state, found = load_latest(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert found == path_of(folder, 100) and same(state, make_state(100))
    assert line.startswith("warning: ") and str(path) in line
    assert load_latest(folder, warn=False)[1] == found and capsys.readouterr().err == ""


def test_all_bad(folder):
    os.truncate(path_of(folder, 100), 1000)
    path_of(folder, 200).write_bytes(b"")
    before = contents(folder)
    with pytest.raises(ValueError, match=f"no checkpoint in {folder} is good"):
        load_latest(folder)
    assert contents(folder) == before


def test_files_without_our_seal(tmp_path):
    path, state, rng = tmp_path / "other.pt", {"w": torch.ones(60), "step": 1}, random.Random(0)
    torch.save(state, path)
    assert same(load(path), state)
    raw, outcomes = path.read_bytes(), {}
    weights = raw.index(b"\0\0\x80\x3f" * 60)
    for byte in range(len(raw)):  # what no checksum covers may pass, and what does not pass is a ValueError
        path.write_bytes(flipped(raw, byte, rng.randrange(8)))
        try:
            outcome = verify(path)
        except Exception as error:
            outcome = type(error)
        outcomes.setdefault(outcome, []).append(byte)
    assert set(range(weights, weights + 240)) <= set(outcomes[ValueError])
    assert set(outcomes) == {None, ValueError}


class Evil:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("kind", ["pickle", "zip", "sealed zip"])
def test_no_code_of_a_file_runs(kind, folder, tmp_path):
    path, marker = path_of(folder, 300), tmp_path / "marker"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Evil(marker)))
    else:
        torch.save({"model": Evil(marker)}, path)
        if kind == "sealed zip":
            sealed.seal(path)
            verify(path)
    with pytest.raises(ValueError, match=path.name) as caught:
        load(path)
    assert "\n" not in str(caught.value) and not marker.exists()
    assert load_latest(folder)[1] == path_of(folder, 200) and not marker.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert marker.exists()  # the control


# The folder


def test_other_names_are_left_alone(folder):
    for name in ("step_999.pt", "step_00000998"):
        (folder / name).mkdir()
    names = ["step_300.pt", "step_000000300.pt", "step_0000030x.pt", "step_-0000300.pt", "step_.pt", "step_²²²²²²²².pt"]
    names += ["step_00000300.pt.pt", "step_00000300.pt.tmp", ".step_00000300.pt", "xstep_00000300.pt", "best.pt"]
    for name in names:
        (folder / name).write_text("x")
    assert list_steps(folder) == [100, 200] and load_latest(folder)[1] == path_of(folder, 200)
    (folder / "step_000000200.pt").write_text("x")  # another file than that of step 200
    assert list_steps(folder) == [100, 200]
    save(folder, 400, make_state(400), keep=2)
    assert list_steps(folder) == [200, 400] and all((folder / name).exists() for name in names)
    (folder / "step_00000500").mkdir()
    (folder / "step_00000500/notes.txt").write_text("mine")
    save(folder, 500, make_state(500), keep=2)
    assert list_steps(folder) == [400, 500] and (folder / "step_00000500/notes.txt").read_text() == "mine"


def test_what_a_path_means(folder, tmp_path):
    """A checkpoint by either name and a folder of shards by its manifest; of other folders what to give instead."""
    shards = folder / "step_00000300"
    shards.mkdir()
    (shards / "manifest.pt").touch()
    for path in (shards, folder / "step_00000300.pt", shards / "manifest.pt"):
        assert meant(path) == meant(str(path)) == shards
    for path in (folder / "step_00000200.pt", folder / "step_00000200"):
        assert meant(path) == folder / "step_00000200.pt"
    for path in (folder / "step_00000250.pt", folder / "best", tmp_path / "manifest.pt"):
        assert meant(path) == path  # it is missing, and who reads it says so
    for path in (folder, tmp_path):
        with pytest.raises(ValueError, match=f"{path} is a folder of checkpoints: give one of them, such as {shards}"):
            meant(path)
    with pytest.raises(ValueError, match="is a folder without checkpoints: give one, as runs/NAME"):
        meant("/")


def test_pruning(tmp_path):
    kept = []
    for step in range(10, 90, 10):
        save(tmp_path, step, {"step": step}, keep=3, save_at=(10, 40, 55))
        kept.append(list_steps(tmp_path))
    assert kept[:4] == [[10], [10, 20], [10, 20, 30], [10, 20, 30, 40]]
    assert kept[4:] == [[10, 30, 40, 50], [10, 40, 50, 60], [10, 40, 50, 60, 70], [10, 40, 60, 70, 80]]
    save(tmp_path, 80, {"step": 81}, keep=3, save_at=(10, 40))  # the same step again replaces it
    assert list_steps(tmp_path) == [10, 40, 60, 70, 80] and load_latest(tmp_path)[0] == {"step": 81}


def test_pruning_counts_no_damaged_ones(folder):
    """Two damaged newer ones, then a run that falls back to step 100 and is stopped at 150."""
    for step in (200, 300):
        path_of(folder, step).write_bytes(b"damaged")
    assert load_latest(folder, warn=False)[1] == path_of(folder, 100)
    assert save(folder, 150, make_state(150), keep=2).exists()
    assert load_latest(folder, warn=False)[1] == path_of(folder, 150)
    assert path_of(folder, 100).exists()


def test_left_overs_of_a_kill_are_removed(folder):
    stale = folder / ".step_00000150.pt.tmp"
    stale.write_bytes(b"half")
    assert load_latest(folder)[1] == path_of(folder, 200)
    save(folder, 300, make_state(300))
    assert not stale.exists()


def fail(*args, **kwargs):
    raise OSError("No space left on device")


def damage(path):
    path.write_bytes(flipped(path.read_bytes(), 500, 0))


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path, synced = tmp_path / "x.json", []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    with sealed.written(path) as file:
        file.write(b"old")
        assert not path.exists()
    assert path.read_bytes() == b"old" and synced == [str(tmp_path / ".x.json.tmp"), str(tmp_path)]
    full, ours = OSError(28, "No space left on device"), OSError("our own words")
    for error, words in ((full, f"[Errno 28] No space left on device: '{path}'"), (ours, "our own words")):
        with pytest.raises(OSError) as caught, sealed.written(path) as file:
            file.write(b"new")
            raise error
        assert str(caught.value) == words
        assert contents(tmp_path) == {"x.json": b"old"}


@pytest.mark.parametrize("step", [200, 300])  # in the place of one that is there, and as a new one
@pytest.mark.parametrize(
    "fault", ["torch.save", "os.replace", "os.fsync", "first os.fsync", "file size limit", "bad disk"]
)
def test_a_failed_save_changes_nothing(fault, step, folder, monkeypatch):
    before = contents(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        if fault == "torch.save":
            patch.setattr(torch, "save", fail)
        elif fault == "bad disk":
            seal = sealed.seal
            patch.setattr(sealed, "seal", lambda path: (seal(path), damage(path)))
        elif fault == "first os.fsync":  # a second one after it says that all is well
            patch.setattr(os, "fsync", mock.Mock(side_effect=[OSError(5, "Input/output error"), None, None]))
        elif fault != "file size limit":
            patch.setattr(os, fault[3:], fail)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, limits[1]))  # an error like that of a full disk
        try:
            with pytest.raises((OSError, RuntimeError)):
                save(folder, step, make_state(300, n=300), keep=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(folder) == before
    save(folder, step, make_state(300, n=300))
    assert load_latest(folder)[0]["step"] == 300


def test_what_cannot_be_removed_stays_and_is_told(folder, monkeypatch, capsys):
    monkeypatch.setattr(Path, "unlink", fail)
    assert try_save(folder, 300, make_state(300), 1, (), failed=2, must=True) == 0  # a good save all the same
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 2 old checkpoint(s) could not be removed, and stay: No space left on device")
    assert list_steps(folder) == [100, 200, 300] and load_latest(folder)[0]["step"] == 300


def test_what_is_in_the_way_is_told(folder):
    notes = folder / "step_00000300.pt" / "notes.txt"
    notes.parent.mkdir(), notes.write_text("mine")
    before = contents(folder)
    with pytest.raises(OSError) as caught:
        try_save(folder, 300, make_state(300), 2, (), failed=0, must=True)
    way, remedy = f"{notes.parent} is in the way, as it is no checkpoint", "the earlier ones are whole: move that away"
    assert way in str(caught.value) and remedy in str(caught.value) and "make room" not in str(caught.value)
    assert contents(folder) == before and notes.read_text() == "mine"
    notes.parent.rename(folder / "notes")
    assert try_save(folder, 300, make_state(300), 2, (), failed=0, must=True) == 0


def test_a_run_goes_on_after_a_failed_save(folder, tmp_path, monkeypatch, capsys):
    assert try_save(folder, 300, {"step": 300}, 2, (100,), failed=2, must=False) == 0
    assert list_steps(folder) == [100, 200, 300] and capsys.readouterr().err == ""
    monkeypatch.setattr(torch, "save", fail)
    for failed in (0, 1):
        assert try_save(folder, 400, {}, 2, (), failed, must=False) == failed + 1
        (line,) = capsys.readouterr().err.splitlines()
        assert all(part in line for part in ("warning: ", "step 400", "MB free", "No space left", "goes on"))
    for failed, must in ((2, False), (0, True)):
        with pytest.raises(OSError, match="step 400 .*No space left on device; the earlier ones are whole"):
            try_save(folder, 400, {}, 2, (), failed, must)
    assert list_steps(folder) == [100, 200, 300]
    monkeypatch.setattr(Path, "mkdir", fail)
    assert try_save(tmp_path / "new", 1, {}, 2, (), failed=0, must=False) == 1
    assert "No space left on device" in capsys.readouterr().err
