"""Generated clips under the folders, file names, label lists and formats of the supported corpora, to try protocols without data.

    hicmae data generate DIR --layout crema_d

Every test part holds every class of the protocol. Faces and voices follow the label as far as two factors can: arousal and
valence of the class. Where the corpora's documentation is silent on the name of a list, the name here is one that users have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hicmae.errors import HicmaeError, UsageError, raise_unknown

if TYPE_CHECKING:
    from hicmae.data.synthetic.clip import Take
    from hicmae.data.synthetic.write import Frames

EXCITED = frozenset({"ang", "fea", "hap", "exc", "sur", "anx", "wor"})  # the first letters of a class in any corpus
POSITIVE = frozenset({"hap", "exc", "neu", "cal", "sur"})
NTSC = Fraction(30_000, 1001)
VOX_PX = 224  # VoxCeleb2's frames are cropped by fixed rows and columns
AVCAFFE_TASKS = (  # what people said of arousal and valence after a task, and the mood of their clips
    ("Excited", "Pleasant", "happy"),
    ("Wide-awake", "Pleased", "happy"),
    ("Neutral", "Neutral", "neutral"),
    ("Dull", "Unsatisfied", "sad"),
    ("Calm", "Unpleasant", "sad"),
)
Row = TypeVar("Row")


@dataclass
class Stage:
    """Writes clips and lists below a folder; every clip is another take."""

    root: Path
    seconds: float
    size_px: int
    seed: int
    takes: int = field(default=0, init=False)

    def take(self, speaker: int, label: str, fps: Fraction = Fraction(25), size_px: int | None = None) -> Take:
        """The next take of a speaker, in the mood of a class."""
        from hicmae.data.synthetic.clip import Take

        self.takes += 1
        arousal, valence = int(label[:3].lower() in EXCITED), int(label[:3].lower() in POSITIVE)
        return Take(self.seed, speaker, self.takes, arousal, valence, self.seconds, size_px or self.size_px, fps)

    def write(self, take: Take, video: str = "", sound: str = "", both: str = "", wav_rate_hz: int = 16_000) -> None:
        """One take into files: pictures alone, sound alone, or one file with both."""
        from hicmae.data.synthetic.clip import pictures
        from hicmae.data.synthetic.clip import sound as speech
        from hicmae.data.synthetic.write import write_media

        frames = pictures(take) if video or both else None
        wave = speech(take) if sound or both else None
        if both:
            write_media(self.root / both, frames, wave, take.fps)
        if video:
            write_media(self.root / video, frames, None, take.fps)
        if sound:
            write_media(self.root / sound, None, wave, wav_rate_hz=wav_rate_hz)

    def write_frames(self, take: Take, folder: str) -> None:
        """A folder of numbered JPEG pictures."""
        from PIL import Image

        from hicmae.data.synthetic.clip import pictures

        (self.root / folder).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures(take), start=1):
            Image.fromarray(picture).save(self.root / folder / f"{number:05d}.jpg", quality=92)

    def text(self, name: str, lines: Iterable[str]) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))


def write_layout(corpus_name: str, root: Path, seconds: float = 1.0, size_px: int = 64, seed: int = 0) -> Path:
    """Write a small corpus below `root` as it is distributed, and return `root`; the bytes depend on the arguments alone.

    Raises UsageError for a name without a layout (nearest first) and for a folder that is not empty, HicmaeError when the
    files cannot be written.
    """
    if corpus_name not in LAYOUTS:
        raise_unknown("layout", corpus_name, LAYOUTS)
    if root.is_dir() and any(root.iterdir()):
        raise UsageError(f"{root}: is not empty; give another folder")
    try:
        root.mkdir(parents=True, exist_ok=True)
        LAYOUTS[corpus_name](Stage(root, seconds, size_px, seed))
    except OSError as error:
        raise HicmaeError(f"{root}: cannot write the generated clips ({error}); free the disk or give another folder") from None
    return root


def _crema_d(stage: Stage) -> None:
    """Two actors of every fold; VideoFlash (FLV) and AudioWAV (16 kHz). Two of the clips that the corpus' page calls broken."""
    labels = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
    names = [f"{1001 + 18 * fold + place % 2}_IEO_{label}_XX" for fold in range(5) for place, label in enumerate(labels)]
    for name in [*names, "1076_MTI_NEU_XX", "1076_MTI_SAD_XX"]:
        take = stage.take(int(name[:4]), name.split("_")[2], NTSC)
        stage.write(take, both=f"VideoFlash/{name}.flv", sound=f"AudioWAV/{name}.wav")


def _ravdess(stage: Stage) -> None:
    """Two actors of every fold: picture (02) and sound (03, 48 kHz) apart; the last actor as files with both (01)."""
    labels = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
    for fold in range(6):
        for place, label in enumerate(labels):
            actor = 1 + 4 * fold + 3 * (place % 2)
            name, folder = f"01-{place + 1:02d}-01-01-01-{actor:02d}", f"Actor_{actor:02d}"
            take = stage.take(actor, label, NTSC)
            if actor == 24:
                stage.write(take, both=f"{folder}/01-{name}.mp4")
            else:
                stage.write(take, video=f"{folder}/02-{name}.mp4", sound=f"{folder}/03-{name}.wav", wav_rate_hz=48_000)


def _msp_improv(stage: Stage) -> None:
    """Both speakers of every session, and turns without one of the four labels (X, O), in the raters' list of the corpus."""
    lines = []
    for session in range(1, 7):
        for place, (letter, label) in enumerate(
            zip("AHNSXO", ("angry", "happy", "neutral", "sad", "none", "other"), strict=True)
        ):
            sex, sentence = "FM"[place % 2], f"S{place + 1:02d}{'AHNS'[place % 4]}"
            turn = f"{sentence}-{sex}{session:02d}-P-{sex}{'MF'[place % 2]}01"
            base = f"session{session}/{sentence}/P/MSP-IMPROV-{turn}"
            take = stage.take(2 * session + place % 2, label, NTSC)
            stage.write(take, both=f"{base}.avi", sound=f"{base}.wav", wav_rate_hz=44_100)
            arousal, valence = 2.0 + 2 * take.arousal, 2.0 + 2 * take.valence
            lines += [f"UTD-IMPROV-{turn}.avi; {letter}; A:{arousal:f}; V:{valence:f}; D:3.000000 ; N:3.000000;"]
            lines += [
                f"WORKER00000001; {label.title()}; {label.title()}; A:{arousal:f}; V:{valence:f}; D:3.000000; N:3.000000;",
                "",
            ]
    stage.text("Evalution.txt", lines)


def _iemocap(stage: Stage) -> None:
    """One dialogue per session: turns as sentence files, the labels with times, and the picture of both actors side by side."""
    import numpy as np

    from hicmae.data.synthetic.clip import sound as speech
    from hicmae.data.synthetic.write import write_media

    for session in range(1, 6):
        dialogue, panels, waves = f"Ses{session:02d}F_impro01", [], []
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for turn, label in enumerate(("ang", "hap", "exc", "neu", "sad", "xxx")):
            speaker = 2 * session + turn % 2
            take, name = stage.take(speaker, label, NTSC), f"{dialogue}_{'FM'[turn % 2]}{turn // 2:03d}"
            panels.append(_side_by_side(take, stage.take(speaker ^ 1, "neu", NTSC), talks_left=turn % 2 == 0))
            waves.append(speech(take))
            start_s = turn * stage.seconds
            times, ratings = (
                f"[{start_s:.4f} - {start_s + stage.seconds:.4f}]",
                f"[{2 + 2 * take.valence:.4f}, {2 + 2 * take.arousal:.4f}, 3.0000]",
            )
            lines += [f"{times}\t{name}\t{label}\t{ratings}", "C-E1:\tNeutral;\t()", "A-E3:\tval 3; act 3; dom  3;\t()", ""]
            stage.write(take, sound=f"Session{session}/sentences/wav/{dialogue}/{name}.wav")
        stage.text(f"Session{session}/dialog/EmoEvaluation/{dialogue}.txt", lines)
        video = stage.root / f"Session{session}/dialog/avi/DivX/{dialogue}.avi"
        write_media(video, np.concatenate(panels), np.concatenate(waves), NTSC)


def _side_by_side(talker: Take, listener: Take, talks_left: bool) -> Frames:
    """The one who talks and the one who listens in one picture, (T, height, 2 width, 3)."""
    from dataclasses import replace

    import numpy as np

    from hicmae.data.synthetic.clip import pictures

    pair = [pictures(talker), pictures(replace(listener, silent=True))]
    return np.concatenate(pair if talks_left else pair[::-1], axis=2)


def _mafw(stage: Stage) -> None:
    """Clips of all single labels for every fold, one of every compound label, and the lists of both kinds."""
    from hicmae.data.corpora.mafw import COMPOUND, SINGLE

    single = [(f"{clip:05d}.mp4", label) for clip, label in enumerate(SINGLE * 5, start=1)]
    compound = [(f"{clip:05d}.mp4", label) for clip, label in enumerate(COMPOUND[len(SINGLE) :], start=len(single) + 1)]
    for clip, label in [*single, *compound]:
        stage.write(stage.take(int(clip[:5]), label), both=f"data/clips/{clip}")
    for kind, clips in (("single", single), ("compound", [*single, *compound])):
        for fold in range(5):
            parts = _parted(clips, fold, len(SINGLE))
            for part, lines in zip(("train", "test"), parts, strict=True):
                place = f"Train & Test Set/{kind}/no_caption/set_{fold + 1}/{part}.txt"
                stage.text(place, (f"{clip} {label}" for clip, label in lines))


def _dfew(stage: Stage) -> None:
    """All classes for every fold: original clips, folders of their frames, and a folder of 16 frames, which is not used."""
    rows = [(clip, 1 + (clip - 1) % 7) for clip in range(1, 36)]
    for clip, label in rows:
        take = stage.take(clip, ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")[label - 1])
        stage.write(take, both=f"Clip/original/{clip}.mp4")
        stage.write_frames(take, f"Clip/clip_224x224/{clip:05d}")
    stage.write_frames(stage.take(1, "happy"), "Clip/clip_224x224_16f/00001")
    for fold in range(5):
        for part, chosen in zip(("train", "test"), _parted(rows, fold, 7), strict=True):
            lines = ["video_name,label", *(f"{clip},{label}" for clip, label in chosen)]
            stage.text(f"EmoLabel_DataSplit/{part}(single-labeled)/set_{fold + 1}.csv", lines)


def _mer_multi(stage: Stage) -> None:
    """Two training clips and one test clip of every class; a clip of another track's test set, which is not used."""
    labels = ("neutral", "angry", "happy", "sad", "worried", "surprise")
    rows: dict[str, list[str]] = {"train": [], "test1": []}
    for number, label in enumerate(labels * 3, start=1):
        part, name = "train" if number <= 12 else "test1", f"sample_{number:08d}"
        take = stage.take(number, label)
        stage.write(take, both=f"{'mer2023train/train' if part == 'train' else part}/{name}.avi")
        rows[part].append(f"{name},{label},{4 * take.valence - 2}")
    stage.write(stage.take(99, "neutral"), both="test2/sample_00000001.avi")
    stage.text("mer2023train/train-label.csv", ["name,discrete,valence", *rows["train"]])
    stage.text("test-labels/test1-label.csv", ["name,discrete,valence", *rows["test1"]])


def _werewolf_xl(stage: Stage) -> None:
    """Two games of every fold with clips of four moods, rated from 0 to 2 in steps of a quarter."""
    lines = ["VideoName,Mean_A_1_2,Mean_P_1_2,Mean_D_1_2"]
    for game in (1, 6, 7, 12, 13, 18, 19, 24, 25, 30):
        for place, label in enumerate(("sad", "neutral", "angry", "happy"), start=1):
            name, take = f"{game:02d}_{1 + place % 2:02d}_{100 + place}", stage.take(game, label)
            stage.write(take, both=f"Werewolf-XL_Speaker_Video/{name}.mp4")
            lines.append(f"{name},{0.5 + take.arousal},{0.25 + take.valence},{0.25 * (place + game % 4)}")
    stage.text("Werewolf-XL_Label.csv", lines)


def _avcaffe(stage: Stage) -> None:
    """Five tasks of two people who train and two who test, two clips each; one clip without sound, which the corpus lists."""
    arousal, valence, people = [], [], {"train": ("aiim003", "aiim004"), "val": ("aiim001", "aiim002")}
    for person in (*people["train"], *people["val"]):
        for task, (excitement, pleasure, mood) in enumerate(AVCAFFE_TASKS, start=1):
            for clip in (1, 2):
                name = f"{person}_task_{task}_clip_{clip:03d}"
                both = f"videos/shorter_segments/{person}/task_{task}/{name}.avi"
                stage.write(stage.take(int(person[4:]), mood), both=both)
            arousal.append(f"{person}_task_{task}, {excitement}")
            valence.append(f"{person}_task_{task}, {pleasure}")
    silent = "aiim003_task_1_clip_003.avi"
    stage.write(stage.take(3, "neutral"), video=f"videos/shorter_segments/aiim003/task_1/{silent}")
    stage.text("info/no_audio_files.txt", [silent])
    stage.text("ground_truths/arousal.txt", arousal)
    stage.text("ground_truths/valence.txt", valence)
    for part, names in people.items():
        stage.text(f"info/{part}.txt", names)


def _voxceleb2(stage: Stage) -> None:
    """Three speakers, two recordings, two clips each: pictures of 224 pixels without sound, and the sound beside them."""
    for speaker in (12, 15, 16):
        for recording in ("21Uxsk56VDQ", "2DLq_Kkc1r8"):
            for clip in (1, 2):
                name = f"id{speaker:05d}/{recording}/{clip:05d}"
                take = stage.take(speaker, ("neutral", "happy")[clip - 1], size_px=VOX_PX)
                stage.write(take, video=f"mp4/{name}.mp4", sound=f"aac/{name}.m4a")


def _synthetic(stage: Stage) -> None:
    """The generated corpus' own layout, with six speakers."""
    from hicmae.data.synthetic.corpus import generate

    generate(stage.root, 6, 4, stage.seconds, stage.size_px, stage.seed, processes=1)


def _parted(rows: Sequence[Row], fold: int, classes: int) -> tuple[list[Row], list[Row]]:
    """Training and test rows of a fold: the test part is its run of `classes` rows, and every fifth row after the fifth run."""
    held = {place for place in range(len(rows)) if (place // classes if place < 5 * classes else place % 5) == fold}
    return [row for place, row in enumerate(rows) if place not in held], [rows[place] for place in sorted(held)]


LAYOUTS: dict[str, Callable[[Stage], None]] = {
    "crema_d": _crema_d,
    "ravdess": _ravdess,
    "msp_improv": _msp_improv,
    "iemocap": _iemocap,
    "mafw": _mafw,
    "dfew": _dfew,
    "mer_multi": _mer_multi,
    "werewolf_xl": _werewolf_xl,
    "avcaffe": _avcaffe,
    "voxceleb2": _voxceleb2,
    "synthetic": _synthetic,
}
