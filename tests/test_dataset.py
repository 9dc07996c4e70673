"""Layouts of data sets: MVTec AD's and VisA's folders, and what is said when they are wrong. File names, no pixels."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from connectors.cameras.pictures import SUFFIXES
from model.dataset import PICTURE_SUFFIXES, VISA_SPLIT, Category, Sample, read_dataset
from model.errors import DatasetError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def mvtec(root: Path, *categories: str) -> Path:
    for category in categories:
        touch(
            root / category,
            "train/good/001.png",
            "train/good/000.png",
            "test/good/000.png",
            "test/cut/000.png",
            "ground_truth/cut/000_mask.png",
        )
    return root


VISA_LINES = (
    "object,split,label,image,mask",
    "candle,train,normal,candle/Data/Images/Normal/0001.JPG,",
    "candle,train,normal,candle/Data/Images/Normal/0000.JPG,",
    "candle,test,normal,candle/Data/Images/Normal/0002.JPG,",
    "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
    "pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,",
    "pcb1,test,anomaly,pcb1/Data/Images/Anomaly/000.JPG,",
)


def visa(root: Path, lines: Sequence[str] = VISA_LINES) -> Path:
    """The folders of VISA_LINES under a split of those lines."""
    for line in VISA_LINES[1:]:
        touch(root, *(name for name in line.split(",")[3:] if name))
    touch(root, str(VISA_SPLIT))
    (root / VISA_SPLIT).write_text("\n".join(lines) + "\n")
    return root


def refusal(root: Path, categories: Sequence[str] | None = None) -> str:
    with pytest.raises(DatasetError) as caught:
        read_dataset(root, categories)
    return str(caught.value)


def test_mvtec_categories_come_in_name_order_with_their_pictures_and_masks(tmp_path: Path) -> None:
    first, second = read_dataset(mvtec(tmp_path, "screw", "bottle"))
    root = tmp_path / "bottle"
    assert second.name == "screw"
    assert first == Category(
        "bottle",
        root,
        (root / "train/good/000.png", root / "train/good/001.png"),
        (
            Sample(root / "test/cut/000.png", "cut", root / "ground_truth/cut/000_mask.png"),
            Sample(root / "test/good/000.png", None, None),
        ),
    )


def test_the_folder_of_one_category_is_a_data_set(tmp_path: Path) -> None:
    mvtec(tmp_path, "bottle", "screw")
    (category,) = read_dataset(tmp_path / "bottle")
    assert (category.name, len(category.test)) == ("bottle", 2)
    assert read_dataset(tmp_path / "bottle", ["bottle"]) == [category]


def test_every_suffix_that_pictures_are_read_with_counts_and_nothing_else_does(tmp_path: Path) -> None:
    mvtec(tmp_path, "bottle")
    touch(tmp_path / "bottle/train/good", "002.JPG", "003.tiff", "Thumbs.db", ".004.png", "licence.txt")
    (category,) = read_dataset(tmp_path)
    assert [path.name for path in category.train] == ["000.png", "001.png", "002.JPG", "003.tiff"]
    assert PICTURE_SUFFIXES == SUFFIXES


def test_files_beside_the_categories_are_no_categories(tmp_path: Path) -> None:
    mvtec(tmp_path, "bottle")
    touch(tmp_path, "readme.txt", "figures/a.png")
    assert [category.name for category in read_dataset(tmp_path)] == ["bottle"]


def test_chosen_categories_come_as_asked_and_the_others_are_not_checked(tmp_path: Path) -> None:
    mvtec(tmp_path, "a", "b", "c")
    (tmp_path / "c/train/good/000.png").unlink()
    (tmp_path / "c/train/good/001.png").unlink()
    assert [category.name for category in read_dataset(tmp_path, ["b", "a", "b"])] == ["b", "a"]
    assert "category c" in refusal(tmp_path)


def test_a_kind_of_defect_without_a_folder_of_masks_has_none(tmp_path: Path) -> None:
    mvtec(tmp_path, "bottle")
    touch(tmp_path / "bottle", "test/odd/000.png")
    (category,) = read_dataset(tmp_path)
    assert [(sample.defect, sample.mask is None) for sample in category.test] == [("cut", False), (None, True), ("odd", True)]


def test_a_mask_missing_among_others_is_refused(tmp_path: Path) -> None:
    mvtec(tmp_path, "bottle")
    touch(tmp_path / "bottle", "test/cut/001.png")
    assert "cut/001_mask.png" in refusal(tmp_path)


def test_visa_is_read_by_its_split(tmp_path: Path) -> None:
    candle, pcb = read_dataset(visa(tmp_path))
    images = tmp_path / "candle/Data/Images"
    assert candle == Category(
        "candle",
        tmp_path / "candle",
        (images / "Normal/0000.JPG", images / "Normal/0001.JPG"),
        (
            Sample(images / "Anomaly/000.JPG", "anomaly", tmp_path / "candle/Data/Masks/Anomaly/000.png"),
            Sample(images / "Normal/0002.JPG", None, None),
        ),
    )
    assert [sample.mask for sample in pcb.test] == [None]
    assert read_dataset(tmp_path, ["pcb1"]) == [pcb]


@pytest.mark.parametrize(
    ("number", "line", "says"),
    [
        (0, "object,split,label,image", "mask is missing"),
        (1, "candle,train,anomaly,candle/Data/Images/Normal/0001.JPG,", "line 2: expected train normal"),
        (3, "candle,valid,normal,candle/Data/Images/Normal/0002.JPG,", "got valid normal"),
        (3, "candle,test,normal,candle/Data/Images/Normal/9.JPG,", "Normal/9.JPG"),
        (3, "candle,test,normal,,", "line 4: expected the file"),
        (4, "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/9.png", "candle/9.png"),
        (5, "", "category pcb1: expected pictures of good parts"),
        (6, "", "category pcb1: expected test pictures"),
    ],
)
def test_a_wrong_line_of_a_visa_split_is_named(tmp_path: Path, number: int, line: str, says: str) -> None:
    assert says in refusal(visa(tmp_path, [*VISA_LINES[:number], line, *VISA_LINES[number + 1 :]]))


def test_visa_folders_without_their_split_are_recognised(tmp_path: Path) -> None:
    (visa(tmp_path) / VISA_SPLIT).unlink()
    assert "VisA's folders without split_csv/1cls.csv" in refusal(tmp_path)


def test_a_split_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (visa(tmp_path) / VISA_SPLIT).write_bytes(b"\xff\xfe\x00object")
    assert "expected a table in UTF-8" in refusal(tmp_path)


def test_an_unknown_category_names_the_near_ones(tmp_path: Path) -> None:
    assert "no category is named 'botle'. Did you mean bottle?" in refusal(mvtec(tmp_path, "bottle", "screw"), ["botle"])
    assert "'candl'. Did you mean candle?" in refusal(visa(tmp_path / "visa"), ["candl"])
    assert "'screw'. Did you mean bottle?" in refusal(tmp_path / "bottle", ["screw"])


@pytest.mark.parametrize(("lost", "says"), [("train/good", "train/good, got none"), ("test", "test, got none")])
def test_a_category_without_train_good_or_without_test_pictures_is_refused(tmp_path: Path, lost: str, says: str) -> None:
    (mvtec(tmp_path, "bottle") / "bottle" / lost).rename(tmp_path / "elsewhere")
    assert "category bottle" in refusal(tmp_path)
    assert says in refusal(tmp_path)


def test_a_folder_of_something_else_a_file_and_nothing_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.png")
    assert "no folder with train/ or test/" in refusal(tmp_path)
    assert "got a file" in refusal(tmp_path / "photos/a.png")
    assert "got nothing" in refusal(tmp_path / "typo")
