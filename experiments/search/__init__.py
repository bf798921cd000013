"""Hyper-parameter search over ordinary runs: what a search is declared with.

from experiments.search import Budget, Choice, Float, Int, Search
"""

from experiments.search.definition import Budget, Search, find, is_search, names
from experiments.search.space import Bundle, Choice, Float, Int

__all__ = ["Budget", "Bundle", "Choice", "Float", "Int", "Search", "find", "is_search", "names"]
