"""Architecture search: one trainer, one class for each method."""

from bionas_fast.searching import darts as _darts  # importing them registers the methods
from bionas_fast.searching import darts2 as _darts2
from bionas_fast.searching import eg as _eg
from bionas_fast.searching import eg_published as _eg_published
from bionas_fast.searching import evolution as _evolution
from bionas_fast.searching import random_search as _random_search
from bionas_fast.searching.config import SearchConfig
from bionas_fast.searching.loop import Search, search
from bionas_fast.searching.method import SearchMethod
from bionas_fast.searching.methods import get_method, method_names, register_method
from bionas_fast.searching.repeats import SearchTable, repeat_search
from bionas_fast.searching.result import SearchResult
