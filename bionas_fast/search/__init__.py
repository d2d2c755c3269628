"""Searches: one loop, one strategy for each method."""

from bionas_fast.search import darts as _darts  # these register the methods
from bionas_fast.search import discrete as _discrete
from bionas_fast.search import eg as _eg
from bionas_fast.search import eg_published as _eg_published
from bionas_fast.search.config import SearchConfig
from bionas_fast.search.method import Strategy
from bionas_fast.search.methods import get_method, method_names, register_method
from bionas_fast.search.search import Search, SearchResult, search
