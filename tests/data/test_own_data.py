"""Anybody's own data: the authors' list format, class-named folders, tables; and what is refused.

More of folders is in test_own_folders.py, of lists of several folds in test_own_splits.py.
"""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest
from own_files import read, write

from hicmae.data import corpora
from hicmae.data.corpora import Sample
from hicmae.errors import ClipError, UsageError


def test_a_list_in_the_authors_format(tmp_path: Path) -> None:
    path = write(
        tmp_path / "all.csv", "frames/a_aligned sound/a.wav 2", "frames/b sound/b.wav 0", f"{tmp_path}/frames/c sound/c.wav 1"
    )
    corpus, samples = read(f"list:{path}")
    assert (corpus.task, corpus.classes, corpus.folds, corpus.metrics) == ("classification", ("0", "1", "2"), (), ("UAR", "WAR"))
    assert samples["a"] == Sample("a", tmp_path / "frames/a_aligned", tmp_path / "sound/a.wav", 2, None, "a")
    assert samples["c"].video == tmp_path / "frames/c"


def test_a_folder_of_splits_in_the_authors_format(tmp_path: Path) -> None:
    clips = [f"v/{name} s/{name}.wav {label}" for name, label in zip("abcd", "0110", strict=True)]
    write(tmp_path / "split01/train.csv", *clips[:2])
    write(tmp_path / "split01/test.csv", *clips[2:])
    write(tmp_path / "split02/train.csv", *clips[2:])
    write(tmp_path / "split02/val.csv", *clips[:2])
    corpus, samples = read(f"list:{tmp_path}")
    assert corpus.folds == (1, 2)
    assert {name: sample.test_folds for name, sample in samples.items()} == {"a": (2,), "b": (2,), "c": (1,), "d": (1,)}
    with pytest.raises(UsageError, match=r"test.csv|val.csv"):
        (tmp_path / "split02/val.csv").unlink()
        corpora.get.cache_clear()
        corpora.get(f"list:{tmp_path}")


def test_several_numbers_are_regression_targets_and_a_video_alone_is_for_pretraining(tmp_path: Path) -> None:
    corpus, samples = read(f"list:{write(tmp_path / 'r.csv', 'a.mp4 a.wav 1.0 0.25 1.0', 'b.mp4 b.wav 0.5 0.0 -1')}")
    assert (corpus.task, corpus.targets, corpus.outputs()) == ("regression", ("target_0", "target_1", "target_2"), 3)
    assert samples["b"].targets == (0.5, 0.0, -1.0)
    corpus, samples = read(f"list:{write(tmp_path / 'p.csv', 'x/a.mp4 0', 'y/a.mp4 0')}")
    assert (corpus.task, corpus.outputs()) == ("pretraining", 0)
    assert sorted(samples) == ["x/a", "y/a"]
    assert samples["x/a"].audio == samples["x/a"].video == tmp_path / "x/a.mp4"


def test_names_with_spaces_and_unicode_stand_in_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", '"mein Film ü.mp4" "mein Ton ü.wav" 0', '"感情 😀.mp4" "感情 😀.wav" 1')
    assert sorted(read(f"list:{path}")[1]) == ["mein Film ü", "感情 😀"]


def test_links_that_the_user_made_are_followed_and_a_list_alone_leads_nowhere_else(tmp_path: Path) -> None:
    real, elsewhere, named = tmp_path / "disk", tmp_path / "elsewhere/videos", tmp_path / "named"
    real.mkdir()
    elsewhere.mkdir(parents=True)
    named.symlink_to(real)  # the data folder is a link, and holds one
    (real / "videos").symlink_to(elsewhere)
    path = write(named / "l.csv", "videos/a.mp4 a.wav 0", f"{real}/b.mp4 {named}/b.wav 1", "videos/../c.mp4 c.wav 1")
    samples = read(f"list:{path}")[1]
    assert [samples[name].video for name in "abc"] == [named / "videos/a.mp4", named / "b.mp4", named / "c.mp4"]
    assert [samples[name].audio for name in "abc"] == [named / f"{name}.wav" for name in "abc"]
    for wrong in ("videos/../../outside.mp4", f"{elsewhere}/a.mp4", f"{real}/../outside.mp4"):
        with pytest.raises(ClipError, match="points outside the data folder"):
            read(f"list:{write(named / 'wrong.csv', f'{wrong} a.wav 0')}")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["../outside.mp4 a.wav 0"], r"l.csv, line 1: ../outside.mp4 points outside the data folder"),
        (["a.mp4 a.wav 0", "/etc/hostname a.wav 0"], r"l.csv, line 2: /etc/hostname points outside the data folder"),
        (["a.mp4 a.wav 0", "a.mp4 a.wav 0"], r"a.mp4: the id a is there twice"),
        (
            ["a.mp4 a.wav 0", "b.mp4 b.wav 1 2"],
            r"b.mp4: has 2 labels where the first clip, .*a.mp4, has 1; paths with spaces stand in double quotes",
        ),
        (["a.mp4 a.wav 0", "b.mp4 0"], r"b.mp4: has 0 labels where the first clip, .*a.mp4, has 1;"),
        (["my film.mp4 my film.wav 0"], r"targets my film.wav 0 are not numbers; paths with spaces stand in double quotes"),
        (["a.mp4 happy"], r"line 1: happy is neither a number nor a sound file"),
        (['"a.mp4 a.wav 0', "b.mp4 b.wav 1"], r"l.csv: unreadable list up to line 2 .* look for a quote left open"),
        (["a" * 200_000 + " a.wav 0"], r"l.csv: unreadable list up to line 1 \(field larger than field limit"),
        (["a.mp4 a.wav 99999999", "b.mp4 b.wav 0"], r"the labels reach 99999999, but only 2 differ; number the classes from 0"),
        (["a.mp4 a.wav " + "9" * 5000], r"the labels reach 999999999999999999, but only 1 differ"),
        (["a.mp4 a.wav 0.5 inf", "b.mp4 b.wav 1 2"], r"a.mp4: targets 0.5 inf are not numbers"),
        (["a.mp4"], r"l.csv, line 1: needs at least a path and a label"),
        (["a.mp4 a.wav 0.5 much", "b.mp4 b.wav 1 2"], r"a.mp4: targets 0.5 much are not numbers"),
        ([], r"holds no clips"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises((ClipError, UsageError), match=message):
        read(f"list:{write(tmp_path / 'l.csv', *lines)}")


def test_a_list_may_point_into_the_data_folder_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HICMAE_DATA", str(tmp_path))
    path = write(tmp_path / "lists/l.csv", f"{tmp_path}/films/a.mp4 {tmp_path}/films/a.wav 0")
    assert read(f"list:{path}")[1]["a"].video == tmp_path / "films/a.mp4"


def test_a_path_that_is_neither_list_nor_folder(tmp_path: Path) -> None:
    for name in (f"list:{tmp_path / 'nowhere'}", f"csv:{tmp_path / 'nowhere.csv'}", f"folder:{tmp_path / 'nowhere'}"):
        with pytest.raises(UsageError):
            corpora.get(name)


def test_folders_named_by_class(tmp_path: Path) -> None:
    for name in ("train/happy/a b.mp4", "train/sad/b.mp4", "train/sad/b.wav", "test/happy/c.mp4", "test/sad/frames/1.jpg"):
        write(tmp_path / name)
    corpus, samples = read(f"folder:{tmp_path}")
    assert (corpus.classes, corpus.folds) == (("happy", "sad"), (1,))
    assert {name: (sample.label, sample.test_folds) for name, sample in samples.items()} == {
        "a b": (0, ()),
        "b": (1, ()),
        "c": (0, (1,)),
        "frames": (1, (1,)),
    }
    assert samples["b"].audio == tmp_path / "train/sad/b.wav"
    assert samples["frames"].audio is None
    corpus, _ = read(f"folder:{tmp_path / 'train/happy'}")
    assert corpus.task == "pretraining"


def test_a_table_with_names_groups_and_folds(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        "sample_id,Video,audio,label,group,fold",
        "one,a.mp4,,joy,p1,1",
        "two,b.mp4,b.wav,anger,p2,2",
        "three,,c.wav,joy,p1,",
    )
    corpus, samples = read(f"csv:{path}")
    assert (corpus.classes, corpus.folds) == (("joy", "anger"), (1, 2))  # in the order of their first rows
    assert samples["one"] == Sample("one", tmp_path / "a.mp4", tmp_path / "a.mp4", 0, None, "p1", (1,))
    assert samples["three"] == Sample("three", None, tmp_path / "c.wav", 0, None, "p1")


def test_a_table_may_give_the_order_of_its_classes_and_tasks_to_average(tmp_path: Path) -> None:
    lines = ["video,label,class,task_id,fold", "a.mp4,2,sad,t1,1", "b.mp4,0,angry,t2,", "c.mp4,2,sad,t1,1"]
    corpus, samples = read(f"csv:{write(tmp_path / 't.csv', *lines)}")
    assert corpus.classes == ("angry", "1", "sad")  # class 1 has no clips here
    assert {name: (sample.label, sample.task_id) for name, sample in samples.items()} == {
        "a": (2, "t1"),
        "b": (0, "t2"),
        "c": (2, "t1"),
    }


def test_a_parquet_table_with_targets(tmp_path: Path) -> None:
    rows = {"video": ["a.mp4", "b.mp4"], "target_arousal": [0.5, 1.0], "target_valence": [1, 2], "fold": [1, 2]}
    pandas.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    corpus, samples = read(f"csv:{tmp_path / 't.parquet'}")
    assert (corpus.task, corpus.targets) == ("regression", ("arousal", "valence"))
    assert samples["b"].targets == (1.0, 2.0)
    assert samples["b"].test_folds == (2,)


@pytest.mark.parametrize("name", ["t.parquet", "T.PARQUET"])
@pytest.mark.parametrize("labels", [[1.0, 0.0, 1.0], [1, 0, 1], ["1", "0", "1"]])
def test_the_column_says_whether_numbers_are_classes(tmp_path: Path, name: str, labels: list[object]) -> None:
    """Programs write whole numbers with a point where a column has empty cells."""
    rows = {"video": ["a.mp4", "b.mp4", "c.mp4"], "label": labels, "fold": [2.0, 1.0, None]}
    pandas.DataFrame(rows).to_parquet(tmp_path / name)
    corpus, samples = read(f"csv:{tmp_path / name}")
    assert (corpus.task, corpus.classes) == ("classification", ("0", "1"))
    assert [(sample.label, sample.test_folds) for sample in samples.values()] == [(1, (2,)), (0, (1,)), (1, ())]


@pytest.mark.parametrize("labels", [("²", "³"), ("01", "02"), ("١", "٢"), ("-1", "1")])
def test_what_is_no_plain_number_is_the_name_of_a_class(tmp_path: Path, labels: tuple[str, str]) -> None:
    lines = ["video,label", *(f"{number}.mp4,{label}" for number, label in enumerate(labels))]
    corpus, samples = read(f"csv:{write(tmp_path / 't.csv', *lines)}")
    assert corpus.classes == labels
    assert [sample.label for sample in samples.values()] == [0, 1]


def test_files_that_are_no_tables_are_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "latin.csv").write_bytes("video,label\nfrüh.mp4,0\n".encode("latin-1"))
    for name, reason in (
        ("csv:{}/bad.parquet", "unreadable parquet table"),
        ("csv:{}/latin.csv", "unreadable table .*UTF-8"),
        ("list:{}/latin.csv", "unreadable list .*UTF-8"),
    ):
        with pytest.raises(ClipError, match=f"(bad.parquet|latin.csv): {reason}") as error:
            read(name.format(tmp_path))
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=f"a parquet table is read as csv:{tmp_path}/t.parquet"):
        corpora.get(f"parquet:{tmp_path}/t.parquet")


@pytest.mark.parametrize("up", ["", "../here/", "../link/"])
def test_relative_places_are_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, up: str) -> None:
    for folder in ("here", "far"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    (tmp_path / "here/v").symlink_to(tmp_path / "far")
    write(tmp_path / "here/clips/train/x.mp4")
    write(tmp_path / "here/clips/test/x.mp4")
    write(tmp_path / "here/t.csv", "video", "v/x.mp4", "w/x.mp4")
    write(tmp_path / "here/l.csv", "v/x.mp4 0", "w/x.mp4 0")
    monkeypatch.chdir(tmp_path / "here")
    for name, ids in (
        ("folder:{}clips", ["test/x", "train/x"]),
        ("csv:{}t.csv", ["v/x", "w/x"]),
        ("list:{}l.csv", ["v/x", "w/x"]),
    ):
        samples = read(name.format(up))[1]
        assert sorted(samples) == ids
        assert all(sample.video and sample.video.is_relative_to(tmp_path / "here") for sample in samples.values())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,label", "a.mp4,x"], r"has the columns file, label; needs video or audio"),
        (["video,label", "a.mp4,x", "b.mp4,"], r"line 3: a line without label"),
        (["video,audio,label", ",,x"], r"line 2: names neither a video nor an audio file"),
        (["video,label,fold", "a.mp4,x,first"], r"line 2: fold 'first' is not a number of a fold"),
        *(
            (["video,label,fold", f"a.mp4,x,{fold}"], rf"line 2: fold '{fold}' is not a number of a fold; these are whole")
            for fold in ("inf", "nan", "1.5", "-1", "0", "1 0", "²")
        ),
        *(
            (["video,target_a", f"a.mp4,{value}"], rf"a.mp4: targets {value} are not numbers")
            for value in ("nan", "inf", "-Infinity", "1e999")
        ),
        (["video,label", "a.mp4,99999999", "b.mp4,0"], r"the labels reach 99999999, but only 2 differ"),
        (["video,label,class", "a.mp4,99999999,x", "b.mp4,0,y"], r"t.csv: the labels reach 99999999, but only 2 differ"),
        (["video,label,class", "a.mp4,²,x"], r"beside class, label must be one number from 0 for each class; it is ²"),
        (["video,label,class", "a.mp4,01,x"], r"beside class, label must be one number from 0 for each class; it is 01"),
        (["video,label", "a.mp4,0.5", "b.mp4,1"], r"t.csv: the label 0.5 is no class; columns of regression targets are named"),
        (["video,label", "a.mp4," + "x" * 200_000], r"t.csv: unreadable table up to line 2 \(field larger than field limit"),
        (["video,label", "a.mp4,x", "b,c.mp4,y"], r"t.csv, line 3: 'y' stands behind the last column; quote values that hold"),
        (["video,label", 'a.mp4,"x', "b.mp4,y"], r"t.csv: unreadable table up to line 3 .* look for a quote left open"),
        (["sample_id,video,label", "one,a.mp4,x", "one,b.mp4,x"], r"b.mp4: the id one is there twice \(also .*a.mp4\)"),
        (["video,label", "../../a.mp4,x"], r"points outside the data folder"),
        (["video,label,class", "a.mp4,0,x", "b.mp4,0,y"], r"line 3: label 0 is y here and x above"),
        (
            ["video,label,class", "a.mp4,x,x", "b.mp4,1,y"],
            r"beside class, label must be one number from 0 for each class; it is 1, x",
        ),
        (["video,label,task_id", "a.mp4,x,t1", "b.mp4,x,"], r"line 3: a line without task_id, which other lines have"),
        (["video,label,task_id", "a.mp4,x,t1", "b.mp4,y,t1"], r"line 3: label or fold differ from those of task t1 above"),
        (["video,target_a,target_b", "a.mp4,1,2", "b.mp4,1,much"], r"b.mp4: targets 1 much are not numbers"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises((ClipError, UsageError), match=message):
        read(f"csv:{write(tmp_path / 't.csv', *lines)}")
