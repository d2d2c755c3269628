"""Files that somebody damaged, by chance or on purpose: an InputError or what was meant, and nothing else."""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
import signal
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.config import RunRecord
from bionas_fast.data import names
from bionas_fast.runs import checkpoint
from bionas_fast.runs.folder import RunFolder
from bionas_fast.searching import Search, SearchConfig
from helpers import killing
from helpers.genotypes import random_genotype

#: Seconds that reading a file may take.
LIMIT = 10.0

CONFIG = SearchConfig(
    dataset="digits", rules=("usf", "brsf"), operations=("dil_conv_3x3",), channels=1, cells=1, epochs=2, batch_size=512
)


class Late(BaseException):
    """Not a subclass of Exception, so that the code under test cannot catch it."""


#: Inputs that make parsers fail in unusual ways. MARK is a file that must never appear.
TOKENS = [
    *(bytes([byte]) for byte in b"\0\x7f\xff\xc3\r\t{}[]\"':,-#@~"),
    b": ", b"&a ", b"*a", b"&a [*a]", b"!!", b"? ",
    b"| ", b"<<: ", b"%YAML 9.9\n", b"---\n", b"...\n", b"null", b"true", b"NaN", b".nan", b"1e999", b"-1", b"0x",
    b"1_0", b"1:1:1", b"9" * 30,
    b"9" * 5000, b"0x" + b"f" * 5000, b"2024-13-99", b"!!int ''", b"!!float x", b"!!bool x",
    b"!!timestamp x", b"!!binary x", b"!!set {a, b}", b"!!omap [1]", b"!!python/object/apply:os.system ['touch MARK']",
    b"!!python/object/new:pathlib.Path [MARK]", b"!!python/name:os.system", b"__import__('os').system('touch MARK')",
    b"\\ud800", b"\xed\xa0\x80", b"\\u0000", b"[" * 3000, b"(" * 300, b"{1:" * 300, b"-" * 3000,
    b"<-", b"<-99", b"~0",
]  # fmt: skip


def mutated(data: bytes, chance: random.Random, tokens: list[bytes]) -> bytes:
    """One to four changes: a bit, a byte, a piece lost, doubled or moved, a token put in."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        end = min(len(changed), at + chance.choice((1, 1, 2, 8, 64)))
        match chance.randrange(7):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(changed):
                changed[at] = chance.randrange(256)
            case 2:
                del changed[at:end]
            case 3:
                changed[at:at] = changed[at:end]
            case 4:
                piece = bytes(changed[at:end])
                del changed[at:end]
                to = chance.randrange(len(changed) + 1)
                changed[to:to] = piece
            case 5:
                del changed[at:]
            case _:
                changed[at:at] = chance.choice(tokens)
    return bytes(changed)


@contextmanager
def only_input_errors(case: object) -> Iterator[list[str]]:
    """Collect InputErrors inside the block; anything else, and taking too long, fails and shows the case."""

    def late(number, frame):
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    messages: list[str] = []
    try:
        yield messages
    except InputError as error:
        messages.append(str(error))
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} for {case!r:.3000}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not any("\n" in message or not message.encode() for message in messages)


@pytest.fixture
def mark(tmp_path) -> Iterator[Path]:
    """The file that code in a crafted file would make; short, so that it fits into any."""
    path = Path(f"/tmp/bf{os.getpid()}")
    yield path
    assert not path.exists()


def tokens_for(mark: Path) -> list[bytes]:
    return [token.replace(b"MARK", str(mark).encode()) for token in TOKENS]


@pytest.mark.parametrize("form", ["json", "text"])
def test_genotypes(form, mark, tmp_path):
    text = """Genotype(normal=[('sep_conv_3x3_u', 0), ('skip_connect_b', 1), ('dil_conv_5x5', 2), ('max_pool_3x3', 0)],
        normal_concat=range(2, 4), reduce=[('sep_conv_5x5_fr', 0), ('avg_pool_3x3', 1)], reduce_concat=[2])"""
    data = (random_genotype(0).to_json() if form == "json" else text).encode()
    chance, path, refused = random.Random(form), tmp_path / "genotype", 0
    for _ in range(500):
        path.write_bytes(case := mutated(data, chance, tokens_for(mark)))
        with only_input_errors(case) as messages:
            genotype = bf.Genotype.load(path)
            assert bf.Genotype.from_json(genotype.to_json()) == genotype
        refused += len(messages)
    assert refused > 250


@pytest.mark.parametrize(
    "data",
    [
        b'{"format_version": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{" + b",".join(b'"%d": 0' % i for i in range(50_000)) + b"}",
        b"Genotype(normal=" + b"-" * 100_000 + b"1)",
        b"Genotype(normal=" + b"(" * 100_000,
        b"Genotype(normal=[" + b"('max_pool_3x3', 0)," * 20_000,
        b"Genotype(normal=[('max_pool_3x3', 10**10**10)])",
        b"Genotype(normal=[('max_pool_3x3', 0x" + b"f" * 5000 + b"), ('skip_connect', 0)])",
        b"Genotype(normal=[('max_pool_3x3', 0), ('skip_connect', 0)], normal_concat=[0x" + b"f" * 5000 + b"])",
    ],
    ids=lambda data: data[:25].decode(),
)
def test_large_genotypes(data, tmp_path):
    (tmp_path / "genotype").write_bytes(data)
    with only_input_errors(data) as messages:
        bf.Genotype.load(tmp_path / "genotype")
    assert messages


def test_settings(mark, tmp_path):
    with RunFolder.create(tmp_path / "run") as folder:
        folder.write_config("search", CONFIG.with_settings(fixed={"stem": "usf"}).settings())
    data = (folder.path / "config.yaml").read_bytes()
    chance, path, refused = random.Random(0), tmp_path / "settings.yaml", 0
    for _ in range(800):
        path.write_bytes(case := mutated(data, chance, tokens_for(mark)))
        with only_input_errors(case) as messages:
            SearchConfig(**RunRecord.read(path).settings)
        refused += len(messages)
    assert refused > 400


@pytest.mark.parametrize(
    "text",
    [
        *(f"epochs: {token.decode(errors='replace')}\n" for token in TOKENS if token.startswith(b"!!")),
        "rules: &a [*a, *a]\n",
        "a: &a [1]\n" + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in pairwise("abcdefghijklmn")),
        "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{f'*{a}, ' * 9}]}}\n" for a, b in pairwise("abcdefghijklmn")),
        "epochs: " + "[" * 100_000,
        "epochs: " + "9" * 100_000,
        "fixed: {" + "a: {" * 5000,
        "epochs: 0x" + "f" * 100_000,
        "alpha_betas: [0x" + "f" * 100_000 + "]",
        "alpha_betas: [2, 3]",
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_crafted_settings(text, mark, tmp_path):
    (tmp_path / "settings.yaml").write_text(text.replace("MARK", str(mark)))
    with only_input_errors(text) as messages:
        SearchConfig(**RunRecord.read(tmp_path / "settings.yaml").settings)
    assert messages


@pytest.fixture(scope="module")
def saved():
    """A search, and its state in the middle of an epoch."""
    search = Search(CONFIG)
    with search.isolated_rng():
        search.enter_epoch()
        search.step()
        search.end_epoch()
        search.enter_epoch()
        search.step()
        return search, search.state_dict()


def test_bytes_of_checkpoints(saved, tmp_path):
    """Every checksum is looked at: what is read at all is what was written."""
    search, state = saved
    data = checkpoint.pack(state)
    chance, path, refused = random.Random(0), tmp_path / "checkpoint.pt", 0
    tokens = [b"PK\3\4", b"PK\1\2", b"PK\5\6", b"\x80\2", b"cos\nsystem\n", b"ctorch\nload\n", b"\xff" * 8]
    for i in range(300):
        # Half of them in the part that says what is where.
        at = chance.randrange(len(data)) if i % 2 else max(0, len(data) - 3000)
        path.write_bytes(data[:at] + mutated(data[at:], chance, tokens))
        with only_input_errors((i, at)) as messages:
            read = checkpoint.unpack(path)
            assert torch.equal(read["net"]["classifier.weight"], state["net"]["classifier.weight"])
            search.load_state_dict(read)
        refused += len(messages)
    assert refused > 250


VALUES: list[Any] = [
    None, True, -1, 0, 10**30, 0.5, float("nan"), "", "x" * 1000, b"", [], {}, (), [[]], {"a": 1}, torch.zeros(()),
    torch.zeros(0), torch.zeros(3, dtype=torch.int64), torch.zeros(1).double(), torch.zeros(1).expand(10**6),
    torch.zeros(2, 2).to_sparse(), torch.zeros(4, dtype=torch.complex64), torch.zeros(3, dtype=torch.bool),
    torch.empty(2, device="meta"), torch.nn.Parameter(torch.zeros(2)), torch.float32, torch.device("cpu"),
    torch.Size([1]),
]  # fmt: skip


def test_entries_of_checkpoints(saved, tmp_path):
    """Whole files in which something was replaced, removed or added: refused, or usable to resume the search."""
    search, state = saved
    chance, path, refused = random.Random(0), tmp_path / "checkpoint.pt", 0
    for i in range(300):
        changed = copy.deepcopy(state)
        # Evenly over the levels, not the many weights alone.
        level, container, key = chance.randint(1, 5), changed, None
        for _ in range(level):
            within = container if key is None else container[key]
            if not isinstance(within, (dict, list)) or not within:
                break
            container, key = within, chance.choice(list(within) if isinstance(within, dict) else range(len(within)))
        what = chance.randrange(4)
        if what == 0:
            del container[key]
        elif what == 1 and isinstance(container, dict):
            container[chance.choice(["x", 3, (1,), "epoch"])] = chance.choice(VALUES)
        elif what == 2 and isinstance(container[key], torch.Tensor):
            tensor = container[key]
            others = [tensor.double(), tensor.flatten()[:0], tensor.unsqueeze(0), tensor.long(), tensor.bool()]
            container[key] = chance.choice(others)
        else:
            container[key] = chance.choice(VALUES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(changed, buffer := io.BytesIO())
        path.write_bytes(buffer.getvalue())
        with only_input_errors((i, what, key)) as messages:
            search.load_state_dict(checkpoint.unpack(path))
            with search.isolated_rng():
                if not search.finished:
                    search.enter_epoch()
                    if not search.steps_done:
                        search.step()
                    search.end_epoch()
        refused += len(messages)
    assert refused > 200


class _Evil:
    """Unpickled, it would make the file."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def _archives(mark: Path) -> Iterator[bytes]:
    touch = f"touch {mark}"
    for evil in (
        _Evil(os.system, (touch,)),
        _Evil(eval, (f"open({str(mark)!r}, 'w')",)),
        _Evil(open, (str(mark), "w")),
        _Evil(exec, (f"open({str(mark)!r}, 'w')",)),
        _Evil(torch.load, (str(mark),)),
    ):
        torch.save({"format": checkpoint.FORMAT, "net": evil}, buffer := io.BytesIO())
        yield buffer.getvalue()
        torch.save({"format": checkpoint.FORMAT, "net": evil}, buffer, _use_new_zipfile_serialization=False)
        yield buffer.getvalue()
        yield pickle.dumps(evil)
    torch.save({"format": checkpoint.FORMAT}, buffer := io.BytesIO())
    bomb = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("archive/data/0", bytes(50_000_000))
    yield bomb.getvalue()


def test_crafted_checkpoints(mark, tmp_path):
    path = tmp_path / "checkpoint.pt"
    for number, data in enumerate(_archives(mark)):
        path.write_bytes(data)
        with only_input_errors(number) as messages:
            checkpoint.unpack(path)
        assert messages, number
        assert not mark.exists(), number


def test_resuming_damaged_runs(monkeypatch, tmp_path, mark):
    """Through the front door: whichever file is damaged, none is changed."""
    monkeypatch.setitem(names.registry._items, killing.DATASET, killing.specks)
    config = CONFIG.with_settings(dataset=killing.DATASET, batch_size=32)
    search = Search(config)
    with RunFolder.create(tmp_path / "run") as folder:
        search.write_beginning(folder)
        with search.isolated_rng():
            search.enter_epoch()
            search.step()
            folder.write_checkpoint(search.state_dict())
    chance, whole = random.Random(0), {p.name: p.read_bytes() for p in folder.path.iterdir()}
    for i in range(100):
        name = "config.yaml" if i % 4 else "checkpoint.pt"
        case = mutated(whole[name], chance, tokens_for(mark))
        (folder.path / name).write_bytes(case)
        before = {p.name: p.read_bytes() for p in folder.path.iterdir()}
        with only_input_errors(case) as messages, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bf.search(resume=folder.path)
        if messages:
            assert {p.name: p.read_bytes() for p in folder.path.iterdir()} == before
        for path in folder.path.iterdir():
            path.unlink()
        for own, data in whole.items():
            (folder.path / own).write_bytes(data)
