"""The clip store: equal to decoding, built once by any number of processes, never silently wrong."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import platform
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from media_files import grey_frames, tone, write_clip, write_table
from numpy.typing import NDArray
from PIL import Image

from hicmae.data import clips, clipstore, corpora, manifest
from hicmae.data.clipstore import ClipStore, DirectClips, PackedFiles, build_all
from hicmae.data.recipe import Crop, Recipe, from_jpeg, resized, to_jpegs
from hicmae.data.store import Pack, PackDamaged, Parts, pack_parts, write_pack
from hicmae.errors import ClipError, HicmaeError


def store_of(table: Path, root: Path, image_px: int = 32, modality: str = "AV") -> ClipStore:
    corpus = corpora.get(f"csv:{table}")
    store = ClipStore(corpus.samples(table.parent), corpus, image_px, modality, root)
    store.build(workers=2)
    return store


def packs(root: Path) -> list[Path]:
    return sorted(root.rglob("*.pack"))


def test_the_store_gives_what_decoding_gives(tmp_path: Path) -> None:
    table = write_table(tmp_path / "data", clips=3)
    corpus = corpora.get(f"csv:{table}")
    samples = corpus.samples(table.parent)
    store, direct = store_of(table, tmp_path / "store"), DirectClips(samples, corpus, 32)
    for number, sample in enumerate(samples):
        assert store.frame_count(number) == direct.frame_count(number) == 40
        assert np.array_equal(store.times_s(number), direct.times_s(number))
        assert np.array_equal(store.frames(number, [5, 0, 39, 39]), direct.frames(number, [5, 0, 39, 39]))
        assert store.sample_count(number) == direct.sample_count(number)
        assert sample.audio is not None
        whole = clips.read_sound(sample.audio)
        for span in (slice(0, 10), slice(15990, 16010), slice(100, 10**9), slice(0, None)):
            assert np.array_equal(store.sound(number, span), whole[span].astype(np.float32) / 32768)
            assert np.array_equal(store.sound(number, span), direct.sound(number, span))


def through_the_store(frame: NDArray[np.uint8], crop: Crop | None = None) -> NDArray[np.uint8]:
    (packed,) = to_jpegs([frame], 160, crop)
    return from_jpeg(packed)


@pytest.mark.parametrize("size", [(224, 224), (90, 300), (161, 159), (500, 320)])
def test_frames_are_resized_as_pillow_does_it_but_for_rounding(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, *size, 3), dtype=np.uint8)
    expected = np.stack([Image.fromarray(frame).resize((160, 160), Image.Resampling.BILINEAR) for frame in frames])
    difference = np.abs(resized(list(frames), 160).astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.5


def test_a_folder_may_hold_pictures_of_several_sizes() -> None:
    frames = [
        np.full((*size, 3), 10 * size[1] % 256, np.uint8) for size in [(224, 224), (224, 224), (90, 300), (160, 160), (224, 224)]
    ]
    for frame, packed in zip(frames, to_jpegs(frames, 160, None), strict=True):
        assert from_jpeg(packed).shape == (160, 160, 3)
        assert np.abs(from_jpeg(packed).astype(int) - frame[0, 0]).max() <= 1


def test_frames_are_close_to_the_pictures_that_went_in() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize((200, 120), Image.Resampling.BICUBIC)
    expected = np.asarray(smooth.resize((160, 160), Image.Resampling.BILINEAR), dtype=int)
    assert np.abs(through_the_store(np.asarray(smooth)).astype(int) - expected).mean() < 3


def test_frames_are_packed_as_pillow_would_pack_them() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((160, 160), Image.Resampling.BICUBIC)
    expected = io.BytesIO()
    picture.save(expected, "JPEG", quality=90)
    expected.seek(0)
    assert np.array_equal(through_the_store(np.asarray(picture)), np.asarray(Image.open(expected)))


def test_the_crop_is_for_frames_of_224_pixels_only() -> None:
    frame = np.zeros((224, 224, 3), np.uint8)
    frame[:160, 32:192] = 200
    assert through_the_store(frame, (0, 160, 32, 192)).min() > 190
    assert through_the_store(frame).min() < 10
    assert through_the_store(frame[:200], (0, 160, 32, 192)).min() < 10


def test_a_second_run_decodes_nothing_and_the_sound_is_shared_by_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_table(tmp_path / "data", clips=4)
    store_of(table, tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in packs(tmp_path / "store")}
    monkeypatch.setattr(Recipe, "record", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr(PackedFiles, "build", lambda *_: pytest.fail("locked, which a store that is only read cannot be"))
    store = store_of(table, tmp_path / "store")
    assert store.frames(2, [0]).shape == (1, 32, 32, 3)
    assert {path: path.stat().st_mtime_ns for path in packs(tmp_path / "store")} == before
    monkeypatch.undo()
    store_of(table, tmp_path / "store", image_px=48)
    kinds = [path.relative_to(tmp_path / "store").parts[0] for path in packs(tmp_path / "store")]
    assert (kinds.count("video"), kinds.count("sound")) == (8, 4)


def test_only_what_the_modality_needs_is_decoded(tmp_path: Path) -> None:
    table = write_table(tmp_path / "data", clips=2)
    store_of(table, tmp_path / "store", modality="A")
    assert {path.relative_to(tmp_path / "store").parts[0] for path in packs(tmp_path / "store")} == {"sound"}


def test_a_changed_file_is_another_pack(tmp_path: Path) -> None:
    table = write_table(tmp_path / "data", clips=2)
    first = store_of(table, tmp_path / "store").frames(0, [0])
    write_clip(tmp_path / "data/clips/clip00.mp4", grey_frames(40) + 50, tone(1.6, 16000))
    corpora.get.cache_clear()
    second = store_of(table, tmp_path / "store").frames(0, [0])
    assert second.mean() - first.mean() == pytest.approx(50, abs=3)


def test_clips_that_cannot_be_decoded_are_named_and_the_others_kept(tmp_path: Path) -> None:
    table = write_table(tmp_path / "data", clips=4)
    broken = tmp_path / "data/clips/clip02.mp4"
    broken.write_bytes(broken.read_bytes()[:900])
    store = store_of(table, tmp_path / "store")
    assert [(problem.sample_id, problem.path) for problem in store.problems()] == [("clip02", str(broken))]
    assert "cut off" in store.problems()[0].reason
    with pytest.raises(ClipError, match=r"clip02.mp4: unreadable"):
        store.frames(2, [0])
    assert store.frames(3, [0]).shape == (1, 32, 32, 3)


def test_a_missing_file_is_found_when_it_comes_back(tmp_path: Path) -> None:
    table = write_table(tmp_path / "data", clips=2)
    clip = tmp_path / "data/clips/clip00.mp4"
    data = clip.read_bytes()
    clip.unlink()
    assert [str(problem) for problem in store_of(table, tmp_path / "store").problems()] == [f"{clip}: missing"]
    clip.write_bytes(data)
    assert store_of(table, tmp_path / "store").problems() == []


@pytest.mark.parametrize("fault", ["gone", "unreadable for a moment"])
def test_a_fault_of_the_disk_is_not_remembered_as_one_of_the_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    table = write_table(tmp_path / "data", clips=2)
    clip = tmp_path / "data/clips/clip00.mp4"
    data = clip.read_bytes()
    original = Recipe.record

    def failing(self: Recipe, path: Path) -> bytes | str:
        """The disk fails when the clip's turn comes, after its digest was taken."""
        if path == clip and fault == "gone":
            clip.unlink(missing_ok=True)
        elif path == clip:  # opened, a loop of links is an OSError for root too
            clip.unlink(missing_ok=True)
            clip.symlink_to(clip)
        return original(self, path)

    monkeypatch.setattr(Recipe, "record", failing)
    with pytest.raises(ClipError, match=r"clip00.mp4: could not be read while it was packed .*; nothing was kept, run again"):
        store_of(table, tmp_path / "store")
    monkeypatch.undo()
    clip.unlink(missing_ok=True)
    clip.write_bytes(data)
    store = store_of(table, tmp_path / "store")
    assert store.problems() == []
    assert store.frames(0, [3]).shape == (1, 32, 32, 3)


def test_a_clip_that_fails_once_and_is_whole_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, seen = write_table(tmp_path / "data", clips=1), []
    original = Recipe.record

    def failing_once(self: Recipe, path: Path) -> bytes | str:
        seen.append(path)
        return "Input/output error" if seen.count(path) == 1 else original(self, path)

    monkeypatch.setattr(Recipe, "record", failing_once)
    assert store_of(table, tmp_path / "store").problems() == []


@pytest.mark.parametrize("damage", ["cut", "footer", "index", "empty"])
def test_a_damaged_pack_is_found_on_opening_and_built_again(tmp_path: Path, damage: str) -> None:
    table = write_table(tmp_path / "data", clips=2)
    expected = store_of(table, tmp_path / "store").frames(0, [7])
    for pack in packs(tmp_path / "store"):
        data = bytearray(pack.read_bytes())
        if damage == "footer":
            data[-3] ^= 1
        elif damage == "index":
            data[-45] ^= 1
        pack.write_bytes({"cut": bytes(data[: len(data) // 2]), "empty": b""}.get(damage, bytes(data)))
        with pytest.raises(PackDamaged):
            Pack(pack)
    assert np.array_equal(store_of(table, tmp_path / "store").frames(0, [7]), expected)
    for pack in packs(tmp_path / "store"):
        Pack(pack)


def test_a_flipped_bit_in_a_record_is_found_on_reading_and_built_again(tmp_path: Path) -> None:
    table = write_table(tmp_path / "data", clips=2)
    store = store_of(table, tmp_path / "store")
    expected, sound = store.frames(1, range(40)), store.sound(1, slice(0, None))
    for pack in packs(tmp_path / "store"):
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.write_bytes(data)
    again = store_of(table, tmp_path / "store")
    assert np.array_equal(again.frames(1, range(40)), expected)
    assert np.array_equal(again.sound(1, slice(0, None)), sound)


def test_a_store_travels_to_workers_without_its_memory_maps(tmp_path: Path) -> None:
    store = store_of(write_table(tmp_path / "data", clips=2), tmp_path / "store")
    expected = store.frames(0, [3])
    assert np.array_equal(pickle.loads(pickle.dumps(store)).frames(0, [3]), expected)


def build_and_count(table: Path, root: Path, log: Path) -> None:
    original = Recipe.record

    def counted(self: Recipe, path: Path) -> bytes | str:
        with log.open("a") as file:
            file.write(f"{self.kind} {path.name}\n")
        return original(self, path)

    Recipe.record = counted  # type: ignore[method-assign]
    store_of(table, root)


def test_jobs_that_build_at_once_share_the_work(tmp_path: Path) -> None:
    table = write_table(tmp_path / "data", clips=8)
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=build_and_count, args=(table, tmp_path / "store", tmp_path / "log")) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0] * 4
    decoded = (tmp_path / "log").read_text().splitlines()
    assert sorted(decoded) == sorted(set(decoded))
    assert len(decoded) == 16
    assert len(packs(tmp_path / "store")) == 16


def test_a_killed_build_leaves_nothing_half_written(tmp_path: Path) -> None:
    table = write_table(tmp_path / "data", clips=8, frames=60)
    job = multiprocessing.get_context("fork").Process(target=build_and_count, args=(table, tmp_path / "store", tmp_path / "log"))
    job.start()
    while not (tmp_path / "log").exists():
        time.sleep(0.005)
    os.kill(job.pid or 0, signal.SIGKILL)
    job.join(60)
    for pack in packs(tmp_path / "store"):
        Pack(pack)
    assert store_of(table, tmp_path / "store").problems() == []
    assert not list((tmp_path / "store").rglob("*.tmp"))


def test_what_a_killed_build_left_goes_with_the_next_but_nothing_that_is_being_written(tmp_path: Path) -> None:
    """Locks may not reach another machine, whose files are left alone for an hour."""
    sound = write_clip(tmp_path / "a.wav", None, tone(0.2, 16000))
    packed = PackedFiles(tmp_path / "store", Recipe("sound"), [sound], {sound: "its digest"})
    pack = packed.packs[0]
    pack.parent.mkdir(parents=True)
    own, old, new = (
        pack.with_name(f".{pack.name}.{place}.4194304.tmp") for place in (platform.node(), "elsewhere.old", "elsewhere")
    )
    other = pack.with_name(f".0123.pack.{platform.node()}.4194304.tmp")
    for path in (own, old, new, other):
        path.write_bytes(b"half a record")
    os.utime(old, (0, 0))
    assert bytes(packed.build(0).record(0))
    assert sorted(pack.parent.glob(".*.tmp")) == sorted([new, other])


class Tiny(Recipe):
    """A record without a file."""

    def record(self, path: Path) -> bytes | str:
        return pack_parts([path.name.encode()]) if path.name != "13" else "no sound stream"


def tiny_packs(root: Path, count: int) -> list[PackedFiles]:
    files = [root / str(number) for number in range(count)]
    digests = {path: path.name if path.name != "13" else manifest.MISSING for path in files}
    return [PackedFiles(root, Tiny(kind), files, digests) for kind in ("video", "sound")]


def build_and_read_with_few_files(root: Path) -> None:
    """Twice, so that the second finds all packs."""
    clipstore.PACK_CLIPS = 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (320, 320))
    for _ in range(2):
        kinds = tiny_packs(root, 200)
        build_all(kinds)
        for packed in kinds:
            assert [path.name for path in packed.reasons()] == ["13"]
            assert bytes(packed.parts(199).part(0)) == b"199"
            read = [bytes(packed.parts(number).part(0)).decode() for number in range(200) if number != 13]
            assert read == [str(number) for number in range(200) if number != 13]


def test_a_store_of_more_packs_than_a_process_may_open_files(tmp_path: Path) -> None:
    job = multiprocessing.get_context("spawn").Process(target=build_and_read_with_few_files, args=(tmp_path,))
    job.start()  # spawned: a fork would begin with the files that the tests before have open
    job.join(120)
    assert job.exitcode == 0


def test_what_was_read_from_a_pack_stays_when_the_pack_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipstore, "OPEN_PACKS", 1)
    packed, _ = tiny_packs(tmp_path, 40)
    parts = packed.parts(0)
    for number in (2, 20, 39):
        assert bytes(packed.parts(number).part(0)) == str(number).encode()
    assert bytes(parts.part(0)) == b"0"


def test_a_store_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    packed, _ = tiny_packs(tmp_path / "store", 1)
    for use in (packed.build, packed.pack):
        with pytest.raises(HicmaeError, match=r"^clip store .*: Not a directory; set HICMAE_STORE$"):
            use(0)


@pytest.mark.parametrize(("clips_there", "expected"), [(1, 1), (20, 20), (1000, 32), (100_000, 391)])
def test_many_clips_go_into_few_packs(tmp_path: Path, clips_there: int, expected: int) -> None:
    files = [tmp_path / f"{number}.mp4" for number in range(clips_there)]
    digests = {path: path.name for path in files}
    packed = PackedFiles(tmp_path / "store", Recipe("video", 32), files, digests)
    assert len(set(packed.packs)) == expected


def test_parts_of_a_record_are_checked_one_by_one() -> None:
    record = bytearray(pack_parts([b"first", b"", b"third"]))
    parts = Parts(memoryview(record))
    assert [bytes(parts.part(number)) for number in range(parts.count)] == [b"first", b"", b"third"]
    record[-1] ^= 1
    damaged = Parts(memoryview(record))
    assert bytes(damaged.part(0)) == b"first"
    with pytest.raises(PackDamaged, match="part 2"):
        damaged.part(2)
    with pytest.raises(PackDamaged):
        Parts(memoryview(record)[:-2])


def test_a_pack_keeps_records_and_reasons(tmp_path: Path) -> None:
    write_pack(tmp_path / "a.pack", [b"one", "no sound stream", b""])
    pack = Pack(tmp_path / "a.pack")
    assert len(pack) == 3
    assert bytes(pack.record(0)) == b"one"
    assert pack.errors == {1: "no sound stream"}
    assert bytes(pack.record(2)) == b""
    assert [path.name for path in tmp_path.iterdir()] == ["a.pack"]
