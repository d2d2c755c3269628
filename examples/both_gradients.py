"""An attack through the feedback and through the true gradient: ``python examples/both_gradients.py``.

The difference of the two is the blindness of the attacker, which is not robustness; see docs/robustness.md.
"""

from __future__ import annotations

import tempfile

import bionas_fast as bf


def main() -> None:
    data = bf.load_dataset("digits")
    for rule in ("bp", "fa"):
        with tempfile.TemporaryDirectory() as folder:
            trained = bf.train_resnet(bf.ResNetConfig(rule=rule, epochs=2, batch_size=128), out=f"{folder}/run")
        attacks = bf.AttackConfig(attacks=("pgd-5", "square-20"), images=60)
        found = bf.attack(trained.network, data, attacks)
        through = {gradient: found.find("pgd-5", gradient).accuracy for gradient in ("feedback", "true")}
        print(f"{rule}: clean {found.clean_accuracy}, PGD {through}, blindness {found.blindness('pgd-5', 8 / 255)}")


if __name__ == "__main__":
    main()
