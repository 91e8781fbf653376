"""Curvature that outlives a batch, for `NaturalGradient(fisher=...)` and for loops of one's own."""

from tf_natgrad.preconditioners._base import Preconditioner
from tf_natgrad.preconditioners._records import PreconditionerInfo
from tf_natgrad.preconditioners._registry import NAMES, get, to_config
from tf_natgrad.preconditioners.ekfac import EKFAC
from tf_natgrad.preconditioners.kfac import KFAC

__all__ = ["EKFAC", "KFAC", "NAMES", "Preconditioner", "PreconditionerInfo", "get", "to_config"]
