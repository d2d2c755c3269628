"""The rules whose layers run different code, and the parameters of a model that torch.nn's model has, too."""

from torch import nn

#: One rule of each mechanism: the others run the code of one of these.
MECHANISMS = ("bp", "fa", "usf", "brsf", "frsf", "dfa", "nsf", "kp", "dkp")


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Its parameters without learned feedback, by name."""
    return {name: p for name, p in model.named_parameters() if name.rpartition(".")[2] != "feedback"}
