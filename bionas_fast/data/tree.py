"""Image files of a folder: splits, classes, and what is left out."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bionas_fast.data.files import readable
from bionas_fast.data.images import EXTENSIONS
from bionas_fast.errors import InputError

#: Names of the folders of a split, in any case.
ROLES = {
    "training": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation", "dev", "eval", "evaluation"),
}
#: Folders that file systems and archivers leave; hidden, like all names that begin with a dot.
_SYSTEM = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")

_READ_TWICE = "links to folders already read"
_OUTSIDE = "images outside the class folders"
_SAME_FILE = "links to images already read"
Identity = tuple[int, int]  # device and inode


@dataclass
class Tree:
    """Images below a folder.

    Attributes:
        parts: (file, label) of each image: of the training and the test folder, or of one part without a split.
        classes: names of the classes, in the order of their labels.
        split: where the parts come from, for a message.
        left_out: number of files and folders that were not read, by reason.
        untested: classes without test images.
    """

    parts: list[list[tuple[Path, int]]]
    classes: list[str]
    split: str
    left_out: Counter[str]
    untested: list[str]


def read_tree(root: Path, name: str) -> Tree:
    """List the images of ``ROOT/train/<class>/`` and ``ROOT/test/<class>/``, or of ``ROOT/<class>/``.

    Links are followed, but no folder is visited and no file is taken twice.

    Raises:
        InputError: a split folder is missing or named twice, a class has no images, a test class is missing from the
            training classes, or one file is in two classes or in both parts.
    """
    return _Reader(name).read(root)


@dataclass
class _Folder:
    """Entries of one folder, in the order of their names."""

    path: Path
    folders: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name
        self.left_out: Counter[str] = Counter()
        self.taken: dict[Identity, tuple[Path, int, int]] = {}

    def read(self, root: Path) -> Tree:
        top = self.scan(root)
        splits = self.find_splits(top)
        if splits:
            self.leave_out_rest(top, splits)
        tops = [self.scan(split) for split in splits] or [top]
        above = {_identity(root), *map(_identity, splits)}
        self.left_out[_OUTSIDE] += len(top.images) if splits else 0
        for folder in tops:
            self.left_out[_OUTSIDE] += len(folder.images)
            folder.folders = [path for path in folder.folders if not self.is_ancestor(path, above)]
        classes = [path.name for path in tops[0].folders]
        for path in tops[-1].folders:
            if path.name not in classes:
                near = next((name for name in classes if name.casefold() == path.name.casefold()), None)
                hint = f", which has {near!r}" if near else ""
                raise self.error(f"class {path.name!r} is in {path.parent}, but not in {tops[0].path}{hint}")
        parts = [self.read_part(part, folder, classes, above) for part, folder in enumerate(tops)]
        split = f"from {splits[0].name}/ and {splits[1].name}/" if splits else ""
        tested = {path.name for path in tops[-1].folders}
        return Tree(parts, classes, split, +self.left_out, [name for name in classes if name not in tested])

    def error(self, message: str) -> InputError:
        return InputError(f"dataset {self.name!r}: {message}")

    def scan(self, path: Path) -> _Folder:
        """List a folder; count what is neither a folder nor an image."""
        result = _Folder(path)
        with readable(path, "a folder"), os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            if name.startswith(".") or name in _SYSTEM:
                self.left_out["hidden files"] += 1
                continue
            mode = self.mode(path / name)
            if stat.S_ISDIR(mode):
                result.folders.append(path / name)
            elif mode and not stat.S_ISREG(mode):
                self.left_out["pipes and devices"] += 1
            elif mode and (path / name).suffix.lower() in EXTENSIONS:
                result.images.append(path / name)
            elif mode:
                self.left_out[(path / name).suffix.lower() or "files without an extension"] += 1
        return result

    def mode(self, path: Path) -> int:
        """Return the mode of a file, 0 for a link that leads nowhere."""
        with readable(path, "a file"):
            try:
                return os.stat(path).st_mode
            except OSError:
                if not path.is_symlink() or os.access(path, os.F_OK):
                    raise
                self.left_out["broken links"] += 1
                return 0

    def is_ancestor(self, path: Path, above: set[Identity]) -> bool:
        if _identity(path) not in above:
            return False
        self.left_out[_READ_TWICE] += 1
        return True

    def find_splits(self, top: _Folder) -> list[Path]:
        """Return the training and the test folder; nothing if the folders are classes."""
        exact = {role: [path for path in top.folders if path.name.casefold() in ROLES[role]] for role in ROLES}
        named = [path for paths in exact.values() for path in paths]
        if exact["training"] and (exact["test"] or exact["validation"]):
            return self.pick(exact)
        # A class may be called "train"; then it holds images. A folder of classes does not.
        all_named = len(named) == len(top.folders)
        if any(all_named or not self.holds_images(path) for path in named):
            role, other = ("training", "test") if exact["training"] else ("test or validation", "train")
            absent = top.path / other
            raise self.error(f"no folder {absent}; train and test are both required: there is only the {role} folder")
        words = {path: set(re.split(r"[\W\d_]+", path.name.casefold())) for path in top.folders}
        loose = {role: [path for path in words if words[path].intersection(ROLES[role])] for role in ROLES}
        complete = loose["training"] and (loose["test"] or loose["validation"])
        if complete and sum(map(len, loose.values())) == len(words) and not any(map(self.holds_images, words)):
            return self.pick(loose)
        return []

    def pick(self, roles: dict[str, list[Path]]) -> list[Path]:
        for role, paths in roles.items():
            if len(paths) > 1:
                raise self.error(f"{paths[0]} and {paths[1]} are both {role} folders; keep one")
        return [roles["training"][0], (roles["test"] or roles["validation"])[0]]

    def holds_images(self, path: Path) -> bool:
        return bool(_Reader(self.name).scan(path).images)

    def leave_out_rest(self, top: _Folder, splits: Sequence[Path]) -> None:
        for path in top.folders:
            if path not in splits:
                self.left_out[f"folder {path.name}/"] += 1

    def read_part(
        self, part: int, top: _Folder, classes: Sequence[str], above: set[Identity]
    ) -> list[tuple[Path, int]]:
        """List (file, label) of every image, class by class; a class without a folder has none."""
        folders = {path.name: path for path in top.folders}
        pairs = []
        for label, name in enumerate(classes):
            if name not in folders:
                continue
            images = self.read_class(folders[name], set(above))
            if not images:
                raise InputError(f"no images in {folders[name]}; images end in {', '.join(EXTENSIONS)}")
            pairs += [(path, label) for path in images if self.take(path, part, label)]
        if not pairs:
            raise InputError(f"no images in {top.path}: expected one folder per class")
        return pairs

    def read_class(self, folder: Path, visited: set[Identity]) -> list[Path]:
        """List the images of a class and its subfolders, each folder once: under its own name before that of a link."""
        found: dict[str, list[Path]] = {}
        waiting: list[Path] = [folder]
        links: list[Path] = []
        while waiting or links:
            path = waiting.pop() if waiting else links.pop()
            if self.is_ancestor(path, visited):
                continue
            visited.add(_identity(path))
            inner = self.scan(path)
            self.refuse_splits_below(inner)
            found[str(path)] = inner.images
            for subfolder in reversed(inner.folders):
                (links if subfolder.is_symlink() else waiting).append(subfolder)
        return [image for place in sorted(found) for image in found[place]]

    def refuse_splits_below(self, folder: _Folder) -> None:
        names = {path.name.casefold() for path in folder.folders}
        tested = (*ROLES["test"], *ROLES["validation"])
        if names.intersection(ROLES["training"]) and names.intersection(tested):
            raise self.error(f"{folder.path} holds a split; expected PATH/train/<class>/ and PATH/test/<class>/")

    def take(self, path: Path, part: int, label: int) -> bool:
        """Whether the file is new; one that is already in another class or part is an error."""
        identity = _identity(path)
        first, first_part, first_label = self.taken.setdefault(identity, (path, part, label))
        if first == path:
            return True
        if (first_part, first_label) == (part, label):
            self.left_out[_SAME_FILE] += 1
            return False
        where = "training and test images" if first_part != part else "two classes"
        raise self.error(f"{first} and {path} are the same file, in {where}")


def _identity(path: Path) -> Identity:
    with readable(path, "a file"):
        status = os.stat(path)
        return status.st_dev, status.st_ino
