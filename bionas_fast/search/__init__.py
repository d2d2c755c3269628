"""Architecture search: one trainer, one class for each method."""

from bionas_fast.search import darts as _darts  # importing them registers the methods
from bionas_fast.search import darts2 as _darts2
from bionas_fast.search import eg as _eg
from bionas_fast.search import eg_published as _eg_published
from bionas_fast.search import evolution as _evolution
from bionas_fast.search import random_search as _random_search
from bionas_fast.search.config import SearchConfig
from bionas_fast.search.method import SearchMethod
from bionas_fast.search.methods import get_method, method_names, register_method
from bionas_fast.search.repeats import SearchTable, repeat_search
from bionas_fast.search.result import SearchResult
from bionas_fast.search.search import Search, search
