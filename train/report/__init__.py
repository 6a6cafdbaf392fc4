"""The fair report on one or many run directories: python -m train.report DIR ... --out=DIR."""

from train.report.page import write

__all__ = ['write']
