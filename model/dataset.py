"""Data sets of good and defective pictures, as the field lays them out in folders. Names of files only: nothing is decoded."""

import csv
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import DatasetError

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
VISA_SPLIT = Path("split_csv") / "1cls.csv"
_VISA_COLUMNS = ("object", "split", "label", "image", "mask")
_LAYOUTS = (
    "Lay it out as MVTec AD does (<category>/train/good, <category>/test/good, <category>/test/<defect>, "
    f"<category>/ground_truth/<defect>) or as VisA does ({VISA_SPLIT} beside the categories)"
)


@dataclass(frozen=True)
class Sample:
    """A test picture.

    defect: its kind; None = good. mask: of the defect's pixels (over 0), the picture's own size; None where the data set
    has none for it, and such a defective picture counts for image figures alone: good pictures and those with masks make
    pixel figures.
    """

    picture: Path
    defect: str | None
    mask: Path | None


@dataclass(frozen=True)
class Category:
    """One kind of part. train: good pictures, in name order. test: at least one, good and defective."""

    name: str
    root: Path
    train: tuple[Path, ...]
    test: tuple[Sample, ...]


def read_dataset(root: Path, categories: Sequence[str] | None = None) -> list[Category]:
    """The categories of a data set in name order, or those asked for, in that order.

    Layouts: MVTec AD (Bergmann et al., CVPR 2019), also a root that is one category itself; VisA (Zou et al., ECCV 2022,
    arXiv 2207.14315) with its original folders and its split `1cls`. Only what is asked for is checked.
    Raises DatasetError for another layout, an unknown category, and files that should be there and are not.
    """
    if not root.is_dir():
        raise DatasetError(f"data set {root}: expected a folder, got {'a file' if root.exists() else 'nothing'}. Mend the path")
    try:
        if (root / VISA_SPLIT).exists():
            return _read_visa(root, categories)
        return [_read_mvtec(name, folder) for name, folder in _mvtec_folders(root, categories)]
    except OSError as error:
        raise DatasetError(f"data set {root}: cannot be read ({error}). Mend its permissions or its disk") from None


def _chosen(root: Path, known: Iterable[str], asked: Sequence[str] | None) -> list[str]:
    names = sorted(known)
    if asked is None:
        return names
    for name in asked:
        if name not in names:
            near = difflib.get_close_matches(name, names, 3, 0.4) or names[:12]
            raise DatasetError(f"data set {root}: no category is named {name!r}. Did you mean {', '.join(near)}?")
    return list(dict.fromkeys(asked))


def _pictures(folder: Path) -> list[Path]:
    """In name order. Hidden files are half-written copies and macOS resource forks."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith("."))


def _complete(name: str, root: Path, train: Sequence[Path], test: Sequence[Sample], train_at: Path, test_at: Path) -> Category:
    if not train:
        raise DatasetError(f"category {name}: expected pictures of good parts in {train_at}, got none. {_LAYOUTS}")
    if not test:
        raise DatasetError(f"category {name}: expected test pictures in {test_at}, got none. {_LAYOUTS}")
    return Category(name, root, tuple(train), tuple(test))


# MVTec AD


def _mvtec_folders(root: Path, asked: Sequence[str] | None) -> list[tuple[str, Path]]:
    if _is_mvtec(root):
        name = root.resolve().name
        _chosen(root, [name], asked)
        return [(name, root)]
    folders = {folder.name: folder for folder in root.iterdir() if _is_mvtec(folder)}
    if not folders:
        visa = any((folder / "Data" / "Images").is_dir() for folder in root.iterdir())
        got = f"VisA's folders without {VISA_SPLIT}" if visa else "no folder with train/ or test/ in it"
        raise DatasetError(f"data set {root}: expected categories, got {got}. {_LAYOUTS}")
    return [(name, folders[name]) for name in _chosen(root, folders, asked)]


def _is_mvtec(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def _read_mvtec(name: str, root: Path) -> Category:
    good, tests = root / "train" / "good", root / "test"
    samples = []
    for folder in sorted(tests.iterdir()) if tests.is_dir() else []:
        defect = None if folder.name == "good" else folder.name
        samples += [Sample(picture, defect, _mvtec_mask(name, root, picture, defect)) for picture in _pictures(folder)]
    return _complete(name, root, _pictures(good), samples, good, tests)


def _mvtec_mask(name: str, root: Path, picture: Path, defect: str | None) -> Path | None:
    """A kind of defect without a folder of masks has none; in such a folder one that is missing is a hole in the data."""
    if defect is None or not (root / "ground_truth" / defect).is_dir():
        return None
    mask = root / "ground_truth" / defect / f"{picture.stem}_mask.png"
    if not mask.is_file():
        raise DatasetError(
            f"category {name}: {picture}: expected its mask {mask}, got nothing. Restore it; or remove the folder "
            f"ground_truth/{defect} to leave all its pictures out of pixel figures"
        )
    return mask


# VisA


def _read_visa(root: Path, asked: Sequence[str] | None) -> list[Category]:
    path = root / VISA_SPLIT
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            lines = [(reader.line_num, line) for line in reader]
            columns = reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: expected a table in UTF-8, got {error}. Fetch it again") from None
    if missing := [column for column in _VISA_COLUMNS if column not in columns]:
        raise DatasetError(
            f"{path}: expected columns {','.join(_VISA_COLUMNS)}, got {','.join(columns) or 'none'}: {missing[0]} is missing. "
            f"Fetch it again"
        )
    chosen = _chosen(root, {line["object"] for _, line in lines}, asked)
    return [_visa_category(root, name, [(number, line) for number, line in lines if line["object"] == name]) for name in chosen]


def _visa_category(root: Path, name: str, lines: Sequence[tuple[int, dict[str, str]]]) -> Category:
    path = root / VISA_SPLIT
    train: list[Path] = []
    samples: list[Sample] = []
    for number, line in lines:
        split, label = line["split"], line["label"]
        if split not in ("train", "test") or label not in ("normal", "anomaly") or (split, label) == ("train", "anomaly"):
            raise DatasetError(
                f"{path}, line {number}: expected train normal, test normal or test anomaly, got {split} {label}. Mend the line"
            )
        picture = _visa_file(root, number, line["image"])
        if split == "train":
            train.append(picture)
        elif label == "normal":
            samples.append(Sample(picture, None, None))
        else:
            samples.append(Sample(picture, "anomaly", _visa_file(root, number, line["mask"]) if line["mask"] else None))
    samples.sort(key=lambda sample: sample.picture)
    return _complete(name, root / name, sorted(train), samples, path, path)


def _visa_file(root: Path, number: int, named: str | None) -> Path:
    file = root / (named or "")
    if not named or not file.is_file():
        raise DatasetError(
            f"{root / VISA_SPLIT}, line {number}: expected the file {file}, got nothing. Restore it or mend the line"
        )
    return file
