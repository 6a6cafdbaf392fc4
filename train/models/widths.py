"""How a model grows and shrinks: one factor for all its hidden widths."""


def scaled(units: int, width: float) -> int:
    """Multiplies a hidden width by a factor, to the nearest integer and at least 1."""
    return max(1, round(units * width))
