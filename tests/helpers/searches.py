"""A search that takes seconds."""

from bionas_fast.searching import SearchConfig

TINY = SearchConfig(
    channels=2, cells=1, epochs=2, rules=("usf", "brsf"), operations=("skip_connect", "sep_conv_3x3", "max_pool_3x3")
)
