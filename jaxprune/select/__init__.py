"""Selection: the highest entries of a whole list of arrays, exactly and without a sort.

`search` finds the score to cut at, three bits a pass (`ordered`); `ties` finds which of the entries
equal to it stay; `replicates` says what vmap does with both.
"""

from jaxprune.select.search import top

__all__ = ['top']
