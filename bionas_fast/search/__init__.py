"""Architecture search: one trainer, one class for each method."""

from bionas_fast.search.config import SearchConfig
from bionas_fast.search.method import SearchMethod
from bionas_fast.search.search import METHODS, Search, SearchResult, search
