"""Operations with built-in learning rules in searches and genotype networks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.data import normalise
from bionas_fast.nn import HebbianConv2d, PredictiveConv2d
from bionas_fast.searching import SearchConfig
from bionas_fast.searching.darts import Darts
from bionas_fast.space import Candidate, Space, get_space
from bionas_fast.space.names import operations
from helpers.tolerances import ENGINES, PLASTIC_ENGINES, PLASTIC_GRADIENTS, TOLERANCES

OWN = ("hebbian_conv_3x3", "predictive_conv_3x3")
LOCAL = "local_predictive_conv_3x3"
SMALL = Space(
    "small", tuple(map(Candidate.parse, ("none", "skip_connect@usf", "dil_conv_3x3@frsf", *OWN, LOCAL))), nodes=2
)


def plasticity(net):
    return {name: own for name, own in net.state_dict().items() if name.endswith("plasticity")}


def test_the_space_has_24_candidates():
    names = [str(candidate) for candidate in get_space("bionas-hl-pc").candidates]
    assert len(names) == 24
    assert names[-2:] == list(OWN)
    assert names[:22] == [str(candidate) for candidate in get_space("bionas").candidates]


def test_a_rule_cannot_be_chosen_for_what_learns_by_itself():
    with pytest.raises(InputError, match=r"'hebbian_conv_3x3' learns by hebbian and takes no rule; got 'usf'"):
        Candidate.parse("hebbian_conv_3x3@usf")
    assert Candidate.parse("hebbian_conv_3x3").learning == "hebbian"


def test_both_engines_learn_the_same():
    """Outputs, gradients and Hebbian weights over several batches, in float64."""
    modular, stacked = (
        bf.build_supernet(SMALL, channels=3, cells=3, in_channels=2, engine=engine, seed=1).double()
        for engine in ("modular", "stacked")
    )
    stacked.load_modular(modular)
    before = {name: own.clone() for name, own in plasticity(modular).items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(4, 2, 8, 8, generator=generator, dtype=torch.float64)
        y = torch.randint(10, (4,), generator=generator)
        outputs = [net(x) for net in (modular, stacked)]
        torch.testing.assert_close(*outputs, **PLASTIC_ENGINES)
        grads = [
            torch.autograd.grad(F.cross_entropy(out, y), net.alpha_parameters())
            for out, net in zip(outputs, (modular, stacked), strict=True)
        ]
        torch.testing.assert_close(*grads, **PLASTIC_GRADIENTS)
    after = plasticity(modular)
    assert after
    for name, own in plasticity(stacked.to_modular()).items():
        torch.testing.assert_close(own, after[name], **ENGINES)
        assert not torch.equal(own, before[name])


def test_an_architecture_step_moves_no_hebbian_weight():
    net = bf.build_supernet(SMALL, channels=2, cells=2, in_channels=1, seed=0)
    before = {name: own.clone() for name, own in plasticity(net).items()}
    strategy = Darts(
        net, SearchConfig(space="bionas-hl-pc", warmup_epochs=0).settled(1000), torch.optim.SGD(net.weight_parameters())
    )
    alphas = [alpha.detach().clone() for alpha in net.alpha_parameters()]
    batch = torch.randn(4, 1, 8, 8), torch.randint(10, (4,))
    strategy.before_weight_step(*batch, iter([batch]))
    assert any(not torch.equal(old, new) for old, new in zip(alphas, net.alpha_parameters(), strict=True))
    for name, own in plasticity(net).items():
        assert torch.equal(own, before[name])


def found():
    edges = [f"{OWN[0]}<-0", f"{OWN[1]}<-1"]
    cell = bf.space.Cell((tuple(map(bf.space.Edge.parse, edges)),), (2,))
    return bf.Genotype(cell, cell)


def test_a_found_network_learns_digits(tmp_path):
    result = bf.train(found(), bf.TrainConfig(epochs=2, channels=8, cells=2), out=tmp_path / "run")
    assert result.test_accuracy > 60
    layers = [m for m in result.network.modules() if isinstance(m, (HebbianConv2d, PredictiveConv2d))]
    assert len(layers) == 4
    loaded = bf.load(tmp_path / "run")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(x), result.network(x))


def test_messages_name_the_layer_by_its_place():
    network = bf.build_network(found(), channels=4, cells=1, in_channels=1)
    layer = next(m for m in network.modules() if isinstance(m, HebbianConv2d))
    layer.rate, layer.rule, layer.normalisation = 1e38, "plain", "none"
    layer.plasticity.fill_(1e30)
    with pytest.raises(InputError, match=r"cells\.0\.edges\.0\.1 \(HebbianConv2d\): the Hebbian update of step 1 "):
        network(torch.randn(4, 1, 8, 8))


@pytest.fixture
def command(forked):
    def command(*arguments):
        done = forked(*arguments)
        assert done.code == 0, done.stderr
        return done.stdout

    return command


def test_search_and_train_from_the_command_line(command, tmp_path):
    run, small = tmp_path / "search", ("--channels", 2, "--cells", 2, "--epochs", 1, "--batch-size", 256)
    assert "run folder" in command("search", "--space", "bionas-hl-pc", *small, "--out", run)
    genotype = bf.Genotype.load(run / "genotype.json")
    cells = {**genotype.cells, "normal": found().normal}
    (run / "genotype.json").write_text(bf.Genotype(**cells).to_json())
    assert "test accuracy" in command("train", run, *small, "--out", tmp_path / "trained")


def test_softhebb_from_the_command_line(command, tmp_path):
    printed = command("train", "softhebb", "--rule", "hard_wta", "--epochs", 1, "--out", tmp_path / "run")
    assert "hard_wta" in printed
    assert "test accuracy" in printed


class TestSoftHebb:
    def test_published_shape(self):
        net = bf.build_softhebb("cifar10")
        x = torch.randn(2, 3, 32, 32)
        assert net.eval().features(x).shape == (2, 1536, 4, 4)
        assert net(x).shape == (2, 10)
        for block, (filters, size) in zip(net.blocks, ((96, 5), (384, 3), (1536, 3)), strict=True):
            assert block[1].plasticity.shape[0] == filters
            assert block[1].kernel_size == (size, size)
            torch.testing.assert_close(block[1].plasticity.flatten(1).norm(dim=1), torch.full((filters,), 25.0))

    def test_only_the_head_has_gradients(self):
        net = bf.build_softhebb("mnist", in_channels=1, image_size=(8, 8))
        assert {name.partition(".")[0] for name, _ in net.named_parameters()} == {"head"}

    @pytest.mark.parametrize("layerwise", [False, True])
    def test_learned_filters_beat_random_ones_on_digits(self, layerwise, tmp_path):
        def accuracy(rule, out=None):
            config = bf.SoftHebbConfig(rule=rule, layerwise=layerwise, epochs=3)
            return bf.train_softhebb(config, out=out)

        learned = accuracy("softhebb", tmp_path / "run")
        assert learned.test_accuracy > accuracy("random").test_accuracy + 1
        loaded = bf.load(tmp_path / "run")
        x = torch.randn(2, 1, 8, 8)
        assert torch.equal(loaded(x), learned.network(x))
        norms = [block[1].plasticity.flatten(1).norm(dim=1).median() for block in loaded.blocks]
        assert norms[0] < 10  # initially 25

    def test_rate_of_the_head_is_halved(self):
        config = bf.SoftHebbConfig(rule="random", epochs=4, halve_at=(0.5, 0.75), learning_rate=0.008)
        rates = [row["learning_rate"] for row in bf.train_softhebb(config, out=False).metrics]
        assert rates == [0.008, 0.008, 0.004, 0.002]

    def test_features_are_the_same_kept_or_computed_anew(self):
        def losses(**settings):
            result = bf.train_softhebb(bf.SoftHebbConfig(rule="random", epochs=2, dropout=0, **settings))
            return torch.tensor([[row["train_loss"], row["test_loss"]] for row in result.metrics])

        torch.testing.assert_close(losses(), losses(feature_memory=0), **TOLERANCES[torch.float32])

    @pytest.mark.parametrize("memory", [0, 1])
    def test_scale_of_the_features(self, memory):
        data = bf.load_dataset("digits")
        x = normalise(data.images, data.mean, data.std)
        config = bf.SoftHebbConfig(rule="random", epochs=1, feature_memory=memory)
        net = bf.train_softhebb(config, out=False).network
        with torch.no_grad():
            expected = net.features(x).square().mean().sqrt()
        torch.testing.assert_close(net.head[1].size, expected, rtol=1e-4, atol=0)
        assert expected > 10
        unscaled = bf.train_softhebb(config.with_settings(scale_features=False), out=False).network
        assert unscaled.head[1].size == 1

    def test_bad_input(self):
        with pytest.raises(InputError, match=r"halve_at\.0: input should be less than 1"):
            bf.SoftHebbConfig(halve_at=[1.5])
        with pytest.raises(InputError, match="unknown architecture 'cifar'; did you mean 'cifar10'"):
            bf.build_softhebb("cifar")
        with pytest.raises(InputError, match="image_size: 4×4 is too small for 3 blocks"):
            bf.build_softhebb("cifar10", image_size=(4, 4))


def test_a_local_predictive_candidate_learns_by_its_own_energy():
    """Its weights learn alike from any loss; those of the other predictive candidate do not."""
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, local in ((LOCAL, True), (OWN[1], False)):
        grads = []
        for power in (1, 2):
            torch.manual_seed(0)  # a pass changes the vector of the power iteration
            module = operations.get(name).build(2, 1, None, True).double()
            (layer,) = (own for own in module if isinstance(own, PredictiveConv2d))
            module(x).pow(power).mul(torch.linspace(0, 1, 8, dtype=x.dtype)).sum().backward()
            grads.append(layer.weight.grad)
        assert grads[0].any() and torch.equal(*grads) == local
