"""Attacks, against torchattacks itself, closed forms and SciPy."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
import torchattacks
from PIL import Image
from scipy import stats
from torch import nn

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.data import configured
from bionas_fast.robustness import AttackConfig, Proportion, Victim, attack, parse_attack
from bionas_fast.runs.progress import Progress
from helpers.genotypes import GENOTYPE
from helpers.supernets import relative
from helpers.tolerances import REORDERED_FLOAT32

EPS = 8 / 255


def network(rule=None, seed=0):
    """A small network on images of 1×8×8, with the learning rule, or of torch.nn."""
    torch.manual_seed(seed)
    layers = nn if rule is None else bf.nn
    options = {} if rule is None else {"rule": rule}
    return nn.Sequential(
        layers.Conv2d(1, 6, 3, padding=1, **options), nn.ReLU(), nn.Flatten(), layers.Linear(384, 10, **options)
    )


@pytest.fixture(scope="module")
def digits():
    data = bf.load_dataset("digits")
    return data.test_images[:80], data.test_labels[:80]


@pytest.fixture(scope="module")
def trained(digits):
    """Networks under three rules, fitted to the attacked images, which are then classified correctly."""
    found = {}
    for rule in ("bp", "usf", "fa"):
        net, (images, labels) = network(rule), digits
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
        found[rule] = net
    return found


def expected(name, net, images, labels, eps, seed):
    """Return what the attack of torchattacks leaves correct, and the norms of the perturbations that succeed."""
    classes = {
        "fgsm": lambda: torchattacks.FGSM(net, eps=eps),
        "pgd-5": lambda: torchattacks.PGD(net, eps=eps, alpha=0.1, steps=5),
        "tpgd": lambda: torchattacks.TPGD(net, eps=eps, alpha=0.1, steps=7),
        "apgd-ce-5": lambda: torchattacks.APGD(net, eps=eps, steps=5, seed=seed, loss="ce"),
        "apgd-dlr-5": lambda: torchattacks.APGD(net, eps=eps, steps=5, seed=seed, loss="dlr"),
        "square-20": lambda: torchattacks.Square(net, eps=eps, n_queries=20, seed=seed),
        "cw-40": lambda: torchattacks.CW(net, steps=40),
        "deepfool-20": lambda: torchattacks.DeepFool(net, steps=20),
        "onepixel-3": lambda: torchattacks.OnePixel(net, pixels=3, steps=10, popsize=10),
        "autoattack": lambda: torchattacks.AutoAttack(net, eps=eps, n_classes=10, seed=seed),
    }
    torch.manual_seed(seed)
    np.random.seed(seed)
    adversarial = classes[name]()(images, labels)
    fooled = net(adversarial).argmax(dim=1) != labels
    return ~fooled, (adversarial - images)[fooled].flatten(1).norm(dim=1)


@pytest.mark.parametrize(
    "name",
    [
        "fgsm",
        "pgd-5",
        "tpgd",
        "apgd-ce-5",
        "apgd-dlr-5",
        "square-20",
        "cw-40",
        "deepfool-20",
        "onepixel-3",
        "autoattack",
    ],
)
def test_results_are_those_of_torchattacks_bit_for_bit(name, digits, trained):
    net = network()
    net.load_state_dict(bf.torch_state_dict(trained["bp"]))
    images, labels = (own[:8] if name.startswith("deepfool") else own for own in digits)  # one image after the other
    config = AttackConfig(attacks=(name,), eps=(0.3,), step_size=0.1, gradient="true", batch_size=1000)
    found = attack(net, (images, labels), config)
    right = net(images).argmax(dim=1) == labels
    assert right.all()  # also of the first image, whose index is part of the seed
    left, norms = expected(name, net.eval(), images, labels, 0.3, 0)
    (outcome,) = found.outcomes
    assert torch.equal(outcome.correct, left)
    assert torch.equal(torch.tensor(outcome.distances), norms)
    assert len(norms) > 0


@pytest.mark.parametrize("true", [0.05, 0.13, 0.3])
def test_clean_and_attacked_accuracy_do_not_share_a_meter(true):
    """A pixel x is of class [x > 1/2]; ε changes that of exactly the images with |x - 1/2| < ε."""

    class Threshold(nn.Module):
        def forward(self, x):
            margin = 4 * (x.flatten(1) - 0.5)
            return torch.cat([-margin, margin], dim=1)

    x = (torch.arange(200) + 0.5) / 200
    labels = (x > 0.5).long()
    labels[::10] = 1 - labels[::10]  # one in ten is wrong from the beginning
    config = AttackConfig(attacks=("fgsm", "pgd-40"), eps=(true,), step_size=0.02, gradient="both")
    found = attack(Threshold(), (x.view(-1, 1, 1, 1), labels), config)
    assert found.clean_accuracy.percent == 90
    left = ((x - 0.5).abs() > true) & (torch.arange(200) % 10 != 0)
    for outcome in found.outcomes:
        assert torch.equal(outcome.correct, left)
        assert found.of_correct(outcome).percent == pytest.approx(100 * int(left.sum()) / 180)
    assert found.worst_case(true).count == int(left.sum())
    assert found.blindness("fgsm", true).points == 0


def test_blindness(digits, trained):
    config = AttackConfig(attacks=("fgsm", "pgd-5"), eps=(0.15,), step_size=0.05, images=60)
    plain, ruled = (attack(trained[rule], digits, config) for rule in ("bp", "fa"))
    for name in config.attacks:
        assert plain.blindness(name, 0.15).points == 0  # B is W
        assert torch.equal(plain.find(name, "true").correct, plain.find(name, "feedback").correct)
    through = {own.gradient: own for own in ruled.outcomes if own.attack == "pgd-5"}
    difference = through["feedback"].correct.double() - through["true"].correct.double()
    found = ruled.blindness("pgd-5", 0.15)
    assert found.points == pytest.approx(100 * difference.mean().item())
    assert found.half_width == pytest.approx(
        100 * stats.norm.ppf(0.975) * difference.std().item() / math.sqrt(60), rel=1e-9
    )
    assert found.points > 10


def test_attack_through_the_true_gradient_is_that_on_the_plain_network(digits, trained):
    config = AttackConfig(attacks=("pgd-5",), eps=(0.1,), gradient="true")
    plain = bf.to_torch(trained["usf"])
    outcomes = [attack(net, digits, config).outcomes[0] for net in (trained["usf"], plain)]
    assert torch.equal(outcomes[0].correct, outcomes[1].correct)


@pytest.mark.parametrize("gradient", ["feedback", "true"])
def test_genotype_networks_are_attacked_by_kernels_equal_but_for_rounding(gradient):
    net = bf.build_network(GENOTYPE, channels=4, cells=3, in_channels=1, num_classes=10).eval()
    victim, images, labels = Victim(net, gradient=gradient), torch.rand(6, 1, 12, 12), torch.arange(6)
    assert not any(parameter.requires_grad for parameter in victim.network.parameters())
    exact = bf.to_torch(net).double().eval() if gradient == "true" else copy.deepcopy(net).double()
    found = []
    for own, x in ((victim, images), (exact, images.double())):
        x = x.clone().requires_grad_()
        logits = own(x)
        nn.functional.cross_entropy(logits, labels).backward()
        found.append((logits.detach().double(), x.grad.double()))
    for actual, expected in zip(*found, strict=True):
        assert relative(actual, expected) < REORDERED_FLOAT32
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_few_images_of_classes_in_order_are_of_all_classes(trained):
    images, labels = torch.rand(100, 1, 8, 8), torch.arange(100) // 10
    for own, expected in ((labels, torch.arange(0, 100, 5)), (labels.flip(0), torch.arange(20))):
        config = AttackConfig(attacks=("noise",), images=20)
        found = attack(trained["bp"], (images, own), config)
        with torch.no_grad():
            clean = trained["bp"](images).argmax(dim=1) == own
        assert torch.equal(found.clean, clean[expected])


@pytest.mark.parametrize("gradient", ["true"])
def test_images_in_files_are_those_in_memory(gradient, tmp_path):
    """A folder attacked from its files, and the same crops read by PIL."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (2, 12, 32, 32, 3), dtype=np.uint8)
    for part, own in zip(("train", "test"), pixels, strict=True):
        for index, image in enumerate(own):
            (tmp_path / part / f"class{index % 3}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / part / f"class{index % 3}" / f"{index:02}.png")
    config = bf.ResNetConfig(
        dataset=f"folder:{tmp_path}", in_memory=False, image_size=32, image_resize=32, workers=0, epochs=1
    )
    data = configured(config)
    net = bf.build_resnet("resnet20", num_classes=3)
    settings = AttackConfig(attacks=("fgsm",), gradient=gradient, images=6, eps=(0.01,))
    found = attack(net, data, settings)
    order = [index for label in range(3) for index in range(label, 12, 3)][::2]  # every other image of each class
    images = torch.from_numpy(pixels[1][order]).permute(0, 3, 1, 2).float() / 255
    labels = torch.tensor([index % 3 for index in order])
    mean, std = (torch.tensor(own).view(-1, 1, 1) for own in (data.mean, data.std))
    plain = nn.Sequential(Normalise(mean, std), bf.to_torch(net))
    expected = attack(plain, (images, labels), settings)
    assert torch.equal(found.clean, expected.clean)
    for own, other in zip(found.outcomes, expected.outcomes, strict=True):
        assert torch.equal(own.correct, other.correct) and own.distances == pytest.approx(other.distances, rel=1e-6)


class Normalise(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x):
        return (x - self.mean) / self.std


def test_network_and_random_numbers_are_left_alone(digits):
    net = network("brsf").train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    attack(net, digits, AttackConfig(attacks=("pgd-2", "onepixel"), images=10, eot=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(("count", "total"), [(0, 7), (7, 7), (3, 10), (871, 1000)])
def test_intervals(count, total):
    low, high = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert Proportion(count, total).interval == pytest.approx((100 * low, 100 * high), abs=1e-9)


def test_gradients_are_averaged_over_redrawn_feedback(digits):
    """Gradients of brsf change from draw to draw; their mean over many draws is less random."""
    net, (images, labels) = network("brsf"), digits

    def gradient(eot):
        victim = Victim(net, eot=eot)
        found = []
        for _ in range(2):
            x = images[:4].clone().requires_grad_()
            nn.functional.cross_entropy(victim(x), labels[:4]).backward()
            found.append(x.grad.flatten())
        return found

    fixed, one, many = gradient(0), gradient(1), gradient(200)
    assert torch.equal(*fixed)
    assert not torch.equal(*one)
    assert nn.functional.cosine_similarity(*many, dim=0) > 0.95 > nn.functional.cosine_similarity(*one, dim=0)
    assert torch.equal(Victim(net, eot=5)(images), Victim(net)(images)) or torch.allclose(
        Victim(net, eot=5)(images), Victim(net)(images)
    )


class Quantised(nn.Module):
    """A network that rounds its images, so its gradient is zero almost everywhere."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((8 * x).round() / 8)


class Straight(nn.Module):
    """A network whose gradient points in a random direction, unlike its predictions."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        logits = self.net(x).detach()
        direction = torch.randn(x[0].numel(), logits.shape[1], generator=torch.Generator().manual_seed(0))
        return logits + (shadow := x.flatten(1) @ direction) - shadow.detach()


@pytest.mark.parametrize(
    ("built", "message"), [(Quantised, "zero gradient: the true gradient of 100 %"), (Straight, "obfuscated gradient")]
)
def test_warnings_appear_on_an_obfuscated_network(built, message, digits, trained):
    config = AttackConfig(attacks=("pgd-5", "square-100"), eps=(0.2,))
    found = attack(built(trained["bp"]), digits, config)
    assert any(message in warning for warning in found.warnings)
    assert any("square-100, which uses no gradient" in warning for warning in found.warnings)


def test_no_warning_on_back_propagation(digits, trained):
    config = AttackConfig(attacks=("fgsm", "pgd-20", "square-100", "noise"), eps=(EPS, 0.2), step_size=0.03)
    assert attack(trained["bp"], digits, config).warnings == ()


def test_warnings_about_randomness_and_probabilities(digits, trained):
    config = AttackConfig(attacks=("fgsm",), images=20)
    found = attack(nn.Sequential(trained["bp"], nn.Softmax(dim=1)), digits, config)
    assert any(warning.startswith("probabilities") for warning in found.warnings)

    class Noisy(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x + 0.01 * torch.randn_like(x))

    found = attack(Noisy(trained["bp"]), digits, config)
    assert any(warning.startswith("random predictions") for warning in found.warnings)
    assert any(warning.startswith("random gradient") for warning in found.warnings)


class Stopping(Progress):
    def __init__(self, steps):
        self.left = steps

    def step(self, loss=None):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_interrupted_attack_continues(digits, trained, tmp_path):
    config = AttackConfig(attacks=("pgd-3", "square-5", "onepixel"), eps=(EPS, 0.1), images=30, batch_size=8)
    whole = attack(trained["usf"], digits, config)
    for steps in (1, 3, 9):
        with pytest.raises(KeyboardInterrupt):
            attack(trained["usf"], digits, config, out=tmp_path, progress=Stopping(steps))
        with open(tmp_path / "outcomes.jsonl", "a") as file:
            file.write('{"attack": "pgd-3", "grad')  # a line of a killed process
    lines = (tmp_path / "outcomes.jsonl").read_text().count("\n")
    found = attack(trained["usf"], digits, config, out=tmp_path)
    assert lines >= 9
    for own, other in zip(found.outcomes, whole.outcomes, strict=True):
        assert (own.label, own.distances) == (other.label, other.distances)
        assert torch.equal(own.correct, other.correct)
    for line in (tmp_path / "outcomes.jsonl").read_text().splitlines():
        json.loads(line)
    with pytest.raises(InputError, match=r"another attack \(other settings\)"):
        attack(trained["usf"], digits, config.with_settings(seed=1), out=tmp_path)
    with pytest.raises(InputError, match=r"another attack \(other network\)"):
        attack(trained["bp"], digits, config, out=tmp_path)
    (tmp_path / "outcomes.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="line 1 is damaged"):
        attack(trained["usf"], digits, config, out=tmp_path)
    other = tmp_path / "run"
    other.mkdir()
    (other / "config.yaml").touch()
    with pytest.raises(InputError, match="holds other files"):
        attack(trained["usf"], digits, config, out=other)


def test_targets(digits, trained):
    """A targeted attack moves the logit of another class, which takes more than any other class does."""
    aimed, free = (
        attack(trained["bp"], digits, AttackConfig(attacks=("fgsm",), eps=(0.15,), targeted=targeted))
        for targeted in (True, False)
    )
    assert aimed.outcomes[0].accuracy.count > free.outcomes[0].accuracy.count
    with pytest.raises(InputError, match="'tpgd' cannot aim"):
        attack(trained["bp"], digits, AttackConfig(attacks=("tpgd",), targeted=True))


def test_transfer(digits, trained):
    config = AttackConfig(attacks=("transfer",), eps=(0.2,), step_size=0.03)
    itself = attack(trained["bp"], digits, config, source=trained["bp"]).outcomes[0]
    direct = attack(trained["bp"], digits, config.with_settings(attacks=("pgd",))).outcomes[0]
    other = attack(trained["usf"], digits, config, source=trained["bp"]).outcomes[0]
    assert torch.equal(itself.correct, direct.correct)
    assert other.accuracy.percent > itself.accuracy.percent
    aimed = attack(trained["bp"], digits, config.with_settings(targeted=True), source=trained["bp"]).outcomes[0]
    assert aimed.accuracy.count > itself.accuracy.count
    with pytest.raises(InputError, match="needs the network that it is computed on"):
        attack(trained["bp"], digits, config)


def test_restarts_only_help_the_attacker(digits, trained):
    one, three = (
        attack(trained["bp"], digits, AttackConfig(attacks=("noise",), eps=(0.3,), restarts=count)).outcomes[0]
        for count in (1, 5)
    )
    assert not (three.correct & ~one.correct).any()
    assert three.accuracy.count < one.accuracy.count


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgdd-10", "did you mean 'pgd'"),
        ("fgsm-3", "fgsm takes no number"),
        ("pgd-0", "expected at least 1 of steps"),
        ("", "unknown attack"),
    ],
)
def test_names(name, message):
    with pytest.raises(InputError, match=message):
        AttackConfig(attacks=(name,))
    assert (parse_attack("apgd-ce-7").amount, parse_attack("apgd-ce").amount) == (7, 50)


def test_bad_input(digits, trained):
    images, labels = digits
    for bad, message in [
        (2 * images, r"pixels in \[0, 1\]"),
        (images.clone().fill_(math.nan), r"pixels in \[0, 1\]"),
        (images - 0.1, r"pixels in \[0, 1\]"),
        (images[:, 0], r"expected \[N, C, H, W\]"),
        (images[:5], "one label each"),
    ]:
        with pytest.raises(InputError, match=message):
            attack(trained["bp"], (bad, labels))
    with pytest.raises(InputError, match="labels: expected 0 to 9"):
        attack(trained["bp"], (images, labels + 90))
    for settings, message in [
        ({"eps": (1.5,)}, "eps"),
        ({"eps": (0.0,)}, "eps"),
        ({"eps": ()}, "eps"),
        ({"attacks": ("fgsm", "fgsm")}, "given twice"),
        ({"eps": (0.1, 0.2, 0.1)}, "eps: expected different values"),
        ({"gradient": "false"}, "gradient"),
    ]:
        with pytest.raises(InputError, match=message):
            AttackConfig(**settings)


def test_feedback_that_needs_the_cross_entropy_refuses_other_losses(digits):
    data, config = digits, {"images": 20, "batch_size": 20}
    for rule in ("drtp", "sdfa"):
        net = bf.nn.connect_direct_feedback(network(rule), 10)
        for settings in ({"attacks": ("cw",)}, {"attacks": ("fgsm", "tpgd")}, {"attacks": ("pgd",), "targeted": True}):
            with pytest.raises(InputError, match=f"the feedback of {rule} needs the cross-entropy"):
                attack(net, data, AttackConfig(**settings, **config))
        attack(net, data, AttackConfig(attacks=("tpgd-1",), gradient="true", **config))
        found = attack(net, data, AttackConfig(attacks=("fgsm", "pgd-2", "apgd-ce-2", "square-2"), **config))
        assert [own.attack for own in found.outcomes if own.gradient == "feedback"] == ["fgsm", "pgd-2", "apgd-ce-2"]
