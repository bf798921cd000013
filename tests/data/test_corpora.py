"""The corpora's protocols, from file names and list files alone: ids, labels, folds and counts."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from pathlib import Path

import pytest

from hicmae.data import corpora
from hicmae.data.corpora import Corpus, Sample, Tree
from hicmae.data.corpora.base import Media, media_by_stem
from hicmae.errors import ClipError, UsageError

OFFICIAL_FOLDS = Path(__file__).resolve().parents[3] / "shared/reference/official/folds"
ROOT = Path("/data")


def listed(name: str, files: list[str], texts: dict[str, str] | None = None) -> dict[str, Sample]:
    corpus = corpora.get(name)
    samples = corpus.checked(corpus.listing(Tree.of(files, texts, ROOT)), ROOT)
    return {sample.sample_id: sample for sample in samples}


def official(name: str) -> list[dict[str, str]]:
    path = OFFICIAL_FOLDS / name
    if not path.exists():
        pytest.skip(f"the authors' released folds are not there ({path})")
    with path.open() as file:
        return list(csv.DictReader(file))


def ravdess_names(modality: str, suffix: str) -> list[str]:
    names = []
    for actor, emotion, intensity, statement, repetition in itertools.product(range(1, 25), range(1, 9), "12", "12", "12"):
        if not (emotion == 1 and intensity == "2"):  # neutral has no strong intensity
            name = f"{modality}-01-{emotion:02d}-0{intensity}-0{statement}-0{repetition}-{actor:02d}"
            names.append(f"Actor_{actor:02d}/{name}{suffix}")
    return names


def crema_names() -> list[str]:
    """7,442 names with the corpus' numbers of clips by emotion; sentences and intensities only have to be unlike each other."""
    wanted = {"ANG": 1271, "DIS": 1271, "FEA": 1271, "HAP": 1271, "NEU": 1087, "SAD": 1271}
    broken = ["1076_MTI_NEU_XX", "1076_MTI_SAD_XX", "1064_TIE_SAD_XX", "1064_IEO_DIS_MD"]
    sentences = ["IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI"]
    names = set(broken)
    for emotion, count in wanted.items():
        mine = sum(emotion in name for name in names)
        pool = (
            f"{actor}_{sentence}_{emotion}_{intensity}"
            for intensity, sentence, actor in itertools.product(("XX", "LO", "MD", "HI"), sentences, range(1001, 1092))
        )
        names |= set(itertools.islice((name for name in pool if name not in names), count - mine))
    return sorted(names)


def test_every_corpus_says_what_it_is() -> None:
    for name in corpora.names():
        corpus = corpora.get(name)
        assert isinstance(corpus, Corpus)
        assert corpus.name == name
        assert corpus.citation
        assert corpus.layout
        assert corpus.task in {"classification", "regression", "pretraining"}
        assert bool(corpus.metrics) == (corpus.task != "pretraining")
        assert corpus.outputs() == {"classification": len(corpus.classes), "regression": len(corpus.targets)}.get(corpus.task, 0)
        assert name == "synthetic" or corpus.licence_url.startswith("http")


def test_unknown_corpus_names_the_nearest_first() -> None:
    with pytest.raises(UsageError, match="unknown corpus 'cremad'; valid, nearest first: crema_d,"):
        corpora.get("cremad")


def test_ravdess_folds_equal_the_released_ones_id_by_id() -> None:
    expected = {row["sample"]: (int(row["label"]), (int(row["test_fold"]),)) for row in official("ravdess.csv")}
    found = listed("ravdess", ravdess_names("02", ".mp4") + ravdess_names("03", ".wav"))
    assert {name: (sample.label, sample.test_folds) for name, sample in found.items()} == expected


def test_ravdess_takes_pictures_and_sound_of_a_performance_from_wherever_they_are() -> None:
    name = "01-05-02-01-02-07"
    both = listed("ravdess", [f"Actor_07/01-{name}.mp4"])[f"02-{name}"]
    assert both.video == both.audio == ROOT / f"Actor_07/01-{name}.mp4"
    apart = listed("ravdess", [f"Actor_07/0{modality}-{name}.{suffix}" for modality, suffix in ((2, "mp4"), (3, "wav"))])
    assert apart[f"02-{name}"].audio == ROOT / f"Actor_07/03-{name}.wav"
    silent = listed("ravdess", [f"Actor_07/03-{name}.wav"])[f"02-{name}"]
    assert silent.video is None
    assert (silent.label, silent.group, silent.test_folds) == (4, "Actor_07", (2,))


def test_ravdess_passes_over_song_and_foreign_files() -> None:
    names = ["Actor_01/02-02-03-01-01-01-01.mp4", "Actor_01/01-01-07-02-02-01-01_1.mp4", "Actor_01/02-01-03-01-01-01-01.mp4"]
    assert list(listed("ravdess", names)) == ["02-01-03-01-01-01-01"]


def test_werewolf_folds_and_targets_equal_the_released_ones_id_by_id() -> None:
    rows = official("werewolf-xl.csv")
    lines = ["VideoName,Mean_P_1_2,Mean_A_1_2,Mean_D_1_2"]
    for row in rows:
        arousal, valence, dominance = row["label"].split()
        lines.append(f"{row['sample']},{valence},{arousal},{dominance}")
    found = listed("werewolf_xl", [f"video/{row['sample']}.mp4" for row in rows], {"labels/regression.csv": "\n".join(lines)})
    expected = {row["sample"]: (tuple(map(float, row["label"].split())), (int(row["test_fold"]),)) for row in rows}
    assert {name: (sample.targets, sample.test_folds) for name, sample in found.items()} == expected
    assert len(found) == corpora.get("werewolf_xl").published["samples"]


def test_crema_d_counts_and_folds() -> None:
    names = crema_names()
    folders = {"AudioMP3": "mp3", "AudioWAV": "wav", "VideoFlash": "flv"}  # as distributed
    files = [f"{folder}/{name}.{suffix}" for folder, suffix in folders.items() for name in names]
    found = listed("crema_d", files)
    assert len(names) == 7442
    assert len(found) == corpora.get("crema_d").published["samples"] == 7438
    actors = {fold: {int(sample.group) for sample in found.values() if sample.test_folds == (fold,)} for fold in range(1, 6)}
    first = {1: 1001, 2: 1019, 3: 1037, 4: 1055, 5: 1073}
    assert {fold: (min(group), max(group)) for fold, group in actors.items()} == {
        fold: (start, start + 17 + (fold == 5)) for fold, start in first.items()
    }
    sample = found["1001_DFA_ANG_XX"] if "1001_DFA_ANG_XX" in found else next(iter(found.values()))
    assert str(sample.video).endswith(".flv")
    assert str(sample.audio).endswith(".wav")


def test_crema_d_with_four_classes_has_the_last_fold_only() -> None:
    found = listed("crema_d_4", [f"VideoFlash/{name}.flv" for name in crema_names()])
    assert len(found) == corpora.get("crema_d_4").published["samples"]
    assert {sample.test_folds for sample in found.values()} == {(), (5,)}
    assert Counter(sample.label for sample in found.values())[3] == 1271 - 2


def test_msp_improv_counts_labels_by_the_raters_consensus() -> None:
    letters = "A" * 792 + "H" * 2644 + "N" * 3466 + "S" * 885 + "X" * 600 + "O" * 51
    turns = itertools.islice(
        itertools.product(range(1, 21), "AHNS", "FM", range(1, 7), "PRST", ("FM", "MF"), range(1, 6)), len(letters)
    )
    names = [f"S{s:02d}{a}-{g}{k:02d}-{kind}-{who}{turn:02d}" for s, a, g, k, kind, who, turn in turns]
    text = "\n\n".join(
        f"UTD-IMPROV-{name}.avi; {letter}; A:3.2; V:2.8; D:3.0; N:3.4;\nAI30DTKVVT0JI-p2; Neutral; Neutral; A:3; V:3; D:3; N:3;"
        for name, letter in zip(names, letters, strict=True)
    )
    files = [f"session{name.split('-')[1][-1]}/{name[:4]}/MSP-IMPROV-{name}.{end}" for name in names for end in ("avi", "wav")]
    found = listed("msp_improv", files, {"Evalution.txt": text})
    assert len(found) == corpora.get("msp_improv").published["samples"] == 7787
    assert all(sample.test_folds == (int(name.split("-")[3][-1]),) for name, sample in found.items())
    assert Counter(sample.label for sample in found.values()) == {0: 792, 1: 2644, 2: 3466, 3: 885}
    assert all(str(sample.audio).endswith(".wav") for sample in found.values())


def test_iemocap_takes_excited_for_happy_and_a_session_for_a_fold() -> None:
    lines = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
    for number, label in enumerate(("neu", "exc", "hap", "fru", "ang", "xxx", "sad")):
        lines += f"[6.2901 - 8.2357]\tSes03F_impro01_F{number:03d}\t{label}\t[2.5000, 2.5000, 2.5000]\nC-E2:\tNeutral;\t()\n"
    wavs = [f"Session3/sentences/wav/Ses03F_impro01/Ses03F_impro01_F{number:03d}.wav" for number in range(7)]
    texts = {
        "Session3/dialog/EmoEvaluation/Ses03F_impro01.txt": lines,
        "Session3/dialog/EmoEvaluation/._Ses03F_impro01.txt": "junk",
    }
    found = listed("iemocap", wavs, texts)
    assert {name[-3:]: sample.label for name, sample in found.items()} == {"000": 2, "001": 1, "002": 1, "004": 0, "006": 3}
    assert {(sample.group, sample.test_folds) for sample in found.values()} == {("Session3", (3,))}
    assert all(sample.audio and sample.audio.suffix == ".wav" for sample in found.values())


def mafw_texts(kind: str, labels: dict[str, str]) -> dict[str, str]:
    texts = {}
    for fold in range(1, 6):
        for part in ("train", "test"):
            lines = [
                f"{clip}.mp4 {label}"
                for number, (clip, label) in enumerate(labels.items())
                if (number % 5 + 1 == fold) == (part == "test")
            ]
            texts[f"Train & Test Set/{kind}/no_caption/set_{fold}/{part}.txt"] = "\n".join(lines) + "\n"
    return texts


def test_mafw_counts_labelled_clips_with_sound() -> None:
    classes = corpora.get("mafw").classes
    labels = {f"{number:05d}": classes[number % 11] for number in range(1, 9173)}
    silent = {f"{number:05d}" for number in [*range(1, 17), *range(10041, 10046)]}  # 16 of the 21 are labelled
    clips = [f"{number:05d}" for number in range(1, 10046)]
    files = [f"data/clips/{clip}.mp4" for clip in clips] + [f"data/audio_16k/{clip}.wav" for clip in clips if clip not in silent]
    found = listed("mafw", files, mafw_texts("single", labels))
    assert len(found) == corpora.get("mafw").published["samples"] == 9156
    assert found["00025"].label == 25 % 11
    assert Counter(len(sample.test_folds) for sample in found.values()) == {1: 9156}
    muxed = listed("mafw", [f"data/clips/{clip}.mp4" for clip in clips], mafw_texts("single", labels))
    assert len(muxed) == 9172


def test_mafw_has_43_compound_classes_and_refuses_others() -> None:
    classes = corpora.get("mafw_43").classes
    assert len(set(classes)) == 43
    assert set(corpora.get("mafw").classes) < set(classes)
    texts = mafw_texts("compound", {f"{number:05d}": name for number, name in enumerate(classes, start=1)})
    found = listed("mafw_43", [], texts)
    assert [sample.label for sample in found.values()] == list(range(43))
    with pytest.raises(ClipError, match=r"\.txt: unknown label 'bliss'; known, nearest first: .*disgust, .*\.\.\.$"):
        listed("mafw_43", [], mafw_texts("compound", {"00001": "bliss", "00002": "anger"}))


def dfew_texts(clips: int) -> dict[str, str]:
    texts = {}
    for fold in range(1, 6):
        for part in ("train", "test"):
            rows = [f"{n},{n % 7 + 1}" for n in range(1, clips + 1) if (n % 5 + 1 == fold) == (part == "test")]
            texts[f"EmoLabel_DataSplit/{part}(single-labeled)/set_{fold}.csv"] = "\n".join(["video_name,label", *rows])
    return texts


def test_dfew_counts_and_layouts() -> None:
    files = [f"Clip/original/part_{n // 1600 + 1}/{n}.mp4" for n in range(1, 11698)]
    found = listed("dfew", files, dfew_texts(11697))
    assert len(found) == corpora.get("dfew").published["samples"] == 11697
    assert Counter(sample.test_folds for sample in found.values()).keys() == {(1,), (2,), (3,), (4,), (5,)}
    assert found["00012"].label == 12 % 7
    frames = [f"Clip/clip_224x224/{n:05d}" for n in range(1, 8)] + [f"Clip/clip_224x224_16f/{n:05d}" for n in range(1, 8)]
    with_frames = listed("dfew", [*frames, "Clip/original/part_1/3.mp4"], dfew_texts(7))
    assert with_frames["00003"].video == ROOT / "Clip/clip_224x224/00003"
    assert with_frames["00003"].audio == ROOT / "Clip/original/part_1/3.mp4"


def test_mer_multi_tests_on_test1() -> None:
    texts = {
        "train-label.csv": "name,discrete,valence\nsample_00000001,worried,-1.0\nsample_00000002,happy,2.0\n",
        "test1-label.csv": "name,discrete,valence\nsample_00003400,surprise,0.5\n",
    }
    files = ["train/sample_00000001.avi", "train/sample_00000002.avi", "test1/sample_00003400.avi", "test2/sample_00003400.avi"]
    found = listed("mer_multi", files, texts)
    assert {name: (sample.label, sample.test_folds) for name, sample in found.items()} == {
        "sample_00000001": (4, ()),
        "sample_00000002": (2, ()),
        "sample_00003400": (5, (1,)),
    }


def test_avcaffe_tests_on_the_official_people_and_averages_tasks() -> None:
    clips = [
        f"videos/shorter_segments/aiim{p:03d}/task_{t}/aiim{p:03d}_task_{t}_clip_{c:03d}.avi"
        for p in (1, 3)
        for t in (1, 2)
        for c in (1, 2)
    ]
    texts = {
        "ground_truths/arousal.txt": "aiim001_task_1, Calm\naiim001_task_2, Excited\naiim003_task_1, Wide-awake\n",
        "ground_truths/valence.txt": "aiim001_task_1, Pleasant\n",
        "info/no_audio_files.txt": "aiim001_task_1_clip_002.avi\n",
    }
    found = listed("avcaffe", clips, texts)
    assert {name: (sample.label, sample.test_folds, sample.task_id) for name, sample in found.items()} == {
        "aiim001_task_1_clip_001": (4, (1,), "aiim001_task_1"),
        "aiim001_task_2_clip_001": (0, (1,), "aiim001_task_2"),
        "aiim001_task_2_clip_002": (0, (1,), "aiim001_task_2"),
        "aiim003_task_1_clip_001": (1, (), "aiim003_task_1"),
        "aiim003_task_1_clip_002": (1, (), "aiim003_task_1"),
    }
    assert list(listed("avcaffe_valence", clips, texts)) == ["aiim001_task_1_clip_001"]


def test_voxceleb2_pairs_pictures_with_sound_and_prefers_the_converted_file() -> None:
    files = [
        "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4",
        "dev/mp4/id00012/21Uxsk56VDQ/00002.mp4",
        "dev/aac/id00012/21Uxsk56VDQ/00001.m4a",
    ]
    found = listed("voxceleb2", [*files, "dev/aac/id00012/21Uxsk56VDQ/00001.wav"])
    assert list(found) == ["id00012/21Uxsk56VDQ/00001", "id00012/21Uxsk56VDQ/00002"]
    assert found["id00012/21Uxsk56VDQ/00001"].audio == ROOT / "dev/aac/id00012/21Uxsk56VDQ/00001.wav"
    assert found["id00012/21Uxsk56VDQ/00002"].audio == found["id00012/21Uxsk56VDQ/00002"].video
    assert {sample.group for sample in found.values()} == {"id00012"}
    assert corpora.get("voxceleb2").crop(160) == (0, 160, 32, 192)
    assert corpora.get("voxceleb2").crop(224) is None


def test_folds_share_no_group_where_the_rule_is_by_group() -> None:
    names = crema_names()
    for name, files in (("crema_d", [f"AudioWAV/{clip}.wav" for clip in names]), ("ravdess", ravdess_names("03", ".wav"))):
        folds: dict[str, set[tuple[int, ...]]] = {}
        for sample in listed(name, files).values():
            folds.setdefault(sample.group, set()).add(sample.test_folds)
        assert all(len(where) == 1 for where in folds.values())


def test_what_prepare_wrote_wins_over_frames_and_files() -> None:
    files = ["VideoFlash/1001_DFA_ANG_XX.flv", "openface/1001_DFA_ANG_XX/1001_DFA_ANG_XX_aligned", "AudioWAV/1001_DFA_ANG_XX.wav"]
    pattern = r"1\d{3}_\w+"
    frames = media_by_stem(Tree.of(files, root=ROOT), pattern)["1001_DFA_ANG_XX"]
    assert frames == Media(ROOT / files[1], ROOT / files[2])
    prepared = media_by_stem(Tree.of([*files, "faces/1001_DFA_ANG_XX", "sound/1001_DFA_ANG_XX.wav"], root=ROOT), pattern)
    assert prepared["1001_DFA_ANG_XX"] == Media(ROOT / "faces/1001_DFA_ANG_XX", ROOT / "sound/1001_DFA_ANG_XX.wav")


def test_a_clip_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ClipError, match=r"b/1001_DFA_ANG_XX.flv: the clip 1001_DFA_ANG_XX is there twice"):
        listed("crema_d", ["a/1001_DFA_ANG_XX.flv", "b/1001_DFA_ANG_XX.flv"])


def test_an_empty_folder_names_the_layout(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no clips of RAVDESS; expected Actor_05/"):
        corpora.get("ravdess").samples(tmp_path)
    with pytest.raises(UsageError, match="no file matches"):
        corpora.get("msp_improv").samples(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        corpora.get("ravdess").samples(tmp_path / "nowhere")
