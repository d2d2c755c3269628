"""The compiled CPU kernels against the reference, bit for bit, under every instruction set of the machine."""

from __future__ import annotations

import subprocess

import pytest
import torch
from torch import Tensor

from bionas_fast import InputError, native
from bionas_fast.kernels.feedback import reference
from bionas_fast.kernels.feedback.records import Feedback
from helpers.programs import COMPILER, NAMES, SANITIZERS, Unavailable

#: Seeds are 64 unsigned bits in a signed number; draws count on beyond 32 bits, of which the lower ones matter.
STREAMS = {
    "zeros": (0, 0),
    "small": (7, 3),
    "highest seed": (-1, 1),
    "seed 2⁶³": (-(2**63), 2),
    "only upper word": (2**32, 0),
    "highest draw": (12345678901234567, 2**32 - 1),
    "draw beyond 32 bits": (5, 2**32 + 9),
}
#: Around the length of a vector, and enough for several threads.
SHAPES = [(), (0,), (1,), (15,), (16,), (17,), (33, 1), (3, 5, 7), (4, 0, 3), (2, 3, 5, 5), (1031, 1021)]


@pytest.fixture(autouse=True)
def _library():
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    assert native.load(), native.status().reason


def operators():
    return torch.ops.bionas_fast_native


def made(weight: Tensor, feedback: Feedback) -> Tensor:
    return operators().feedback_weight(weight, *feedback[:5])


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    number = ~expected.isnan()
    assert torch.equal(actual.signbit()[number], expected.signbit()[number])


def make_weight(*shape: int) -> Tensor:
    """Random, with every kind of number that has a sign of its own."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    special = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-45, -1e-45])
    count = min(weight.numel(), len(special))
    weight.view(-1)[:count] = special[:count]
    return weight


def philox_word(element: int, draw: int, seed: int) -> int:
    """Word 0 of Philox4x32-10, in Python's own numbers."""
    key, counter = [seed % 2**32, seed >> 32], [element, draw, 0, 0]
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * counter[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter[0]


class TestUniform:
    @pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_is_the_reference(self, isa, shape, stream):
        stream = torch.tensor(stream)
        assert_same_bits(operators().uniform(shape, stream), reference.uniform(shape, stream))

    def test_known_answer(self, isa):
        # Random123, kat_vectors: philox4x32 10, all zeros.
        assert operators().uniform([1], torch.tensor([0, 0])).item() == (0x6627E8D5 >> 8) / 2**24

    @pytest.mark.parametrize("seed", [0, 1, 2**63 + 5, 2**64 - 1])
    def test_is_philox(self, isa, seed):
        draw, count = 0xDEADBEEF, 40000
        stream = torch.tensor([seed - 2**64 if seed >= 2**63 else seed, draw])
        numbers = operators().uniform([count], stream)
        for element in (0, 1, 17, 16384, count - 1):
            assert numbers[element].item() == (philox_word(element, draw, seed) >> 8) / 2**24

    def test_reads_a_strided_stream(self, isa):
        stream = torch.tensor([[3, -1], [4, -1]])[:, 0]
        assert_same_bits(operators().uniform([20], stream), reference.uniform([20], stream))

    def test_does_not_depend_on_threads(self, isa):
        before = torch.get_num_threads()
        results = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(operators().uniform([100003], torch.tensor([1, 2])))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


class TestFeedbackWeight:
    @pytest.mark.parametrize("mode", ["sign", "stored_sign", "drawn_sign"])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_is_the_reference(self, isa, shape, mode):
        weight = make_weight(*shape)
        feedback = Feedback(mode, weight.flip(0) if shape else make_weight(), torch.tensor([-9, 4]), 0.1, 0.3)
        assert_same_bits(made(weight, feedback), reference.feedback_weight(weight, feedback))

    @pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
    def test_every_stream(self, isa, stream):
        weight, feedback = make_weight(50, 50), Feedback("drawn_sign", None, torch.tensor(stream), 1 / 3)
        assert_same_bits(made(weight, feedback), reference.feedback_weight(weight, feedback))

    @pytest.mark.parametrize("mode", ["sign", "stored_sign", "drawn_sign"])
    @pytest.mark.parametrize(
        "layout",
        [
            lambda w: w.transpose(0, 1),
            lambda w: w[::2, 1:],
            lambda w: w[:1].expand(6, -1, -1, -1),
            lambda w: w.to(memory_format=torch.channels_last),
        ],
        ids=["transposed", "sliced", "expanded", "channels_last"],
    )
    def test_elements_are_counted_in_row_major_order(self, isa, layout, mode):
        weight = layout(make_weight(6, 7, 5, 3))
        feedback = Feedback(mode, weight * 2, torch.tensor([8, 1]), 0.1, 0.3)
        actual = made(weight, feedback)
        assert actual.is_contiguous()
        assert_same_bits(actual, reference.feedback_weight(weight, feedback))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"weight": torch.ones(2, dtype=torch.float64)}, "weight: expected Float"),
            ({"stored": torch.ones(2, dtype=torch.bfloat16), "mode": "stored_sign"}, "stored: expected Float"),
            ({"stored": torch.ones(3), "mode": "stored_sign"}, "stored: expected the shape of weight"),
            ({"mode": "stored_sign"}, "needs a stored tensor"),
            ({"mode": "drawn_sign"}, "needs a stream"),
            ({"mode": "drawn_sign", "stream": torch.ones(2)}, "stream: expected Long"),
            ({"mode": "drawn_sign", "stream": torch.ones(3, dtype=torch.int64)}, "stream: expected 2 numbers"),
            ({"mode": "weight"}, "got weight"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_refuses_what_it_cannot_do(self, change, message):
        arguments = {
            "weight": torch.ones(2),
            "stored": None,
            "stream": None,
            "mode": "sign",
            "bound": 1.0,
            "scale": 1.0,
        }
        with pytest.raises(RuntimeError, match=message):
            operators().feedback_weight(**(arguments | change))


@pytest.mark.parametrize("mode", ["sign", "stored_sign", "drawn_sign"])
def test_opcheck_feedback_weight(mode):
    weight = make_weight(4, 3, 3, 3).to(memory_format=torch.channels_last)
    arguments = (weight, mode, torch.rand(4, 3, 3, 3), torch.tensor([1, 2]), 0.1, 0.3)
    torch.library.opcheck(operators().feedback_weight.default, arguments)


def test_opcheck_uniform():
    torch.library.opcheck(operators().uniform.default, ([3, 5], torch.tensor([1, 2])))


class TestInstructionSets:
    def test_the_fastest_runs(self):
        assert native.isas()[-1] == "baseline"
        assert native.status().isa == native.isas()[0]

    def test_a_choice_ends_with_its_block(self):
        with native.use_isa("baseline"):
            assert native.status().isa == "baseline"
        assert native.status().isa == native.isas()[0]

    def test_an_unknown_one_names_those_that_run(self):
        with pytest.raises(InputError, match=r"unknown instruction set 'avx1024'.*baseline"), native.use_isa("avx1024"):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("name", NAMES)
def test_under_a_sanitizer(programs, name, sanitizer):
    try:
        program = programs.of_cpu(name, sanitizer)
    except Unavailable as reason:
        pytest.skip(str(reason))
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
