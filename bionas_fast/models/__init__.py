"""Networks to be trained."""

from bionas_fast.models.network import FoundNetwork, build_network
