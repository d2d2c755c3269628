"""The network of a genotype in Lightning: ``python examples/lightning_module.py``."""

from __future__ import annotations

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import bionas_fast as bf


class GenotypeModule(lightning.LightningModule):
    """A network of a genotype, trained by SGD with a cosine schedule.

    Args:
        genotype: the genotype as JSON, so that Lightning can keep it in a checkpoint.
    """

    def __init__(self, genotype: str, channels: int = 4, cells: int = 3, in_channels: int = 1, num_classes: int = 10):
        super().__init__()
        self.save_hyperparameters()
        self.network = bf.build_network(
            bf.Genotype.from_json(genotype),
            channels=channels,
            cells=cells,
            in_channels=in_channels,
            num_classes=num_classes,
        )

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, index):
        x, y = batch
        loss = torch.nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


def main() -> None:
    data = bf.load_dataset("digits")
    training = TensorDataset(data.images, data.labels)
    test = TensorDataset(data.test_images, data.test_labels)
    module = GenotypeModule(bf.space.published("biodarts2").genotype.to_json())
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, DataLoader(training, 256, shuffle=True), DataLoader(test, 256))
    print({name: float(value) for name, value in trainer.callback_metrics.items()})
    print(bf.rule_shares(module.network))


if __name__ == "__main__":
    main()
