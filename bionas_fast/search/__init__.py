"""Searches: one loop, one strategy for each method."""

from bionas_fast.search.config import SearchConfig
from bionas_fast.search.method import Strategy
from bionas_fast.search.search import METHODS, Search, SearchResult, search
