"""The fast engine: a scan that precomputes everything independent of the carry for many steps.

``graph`` represents a step as a graph of equations, ``rewrites`` changes the graph so that it runs
faster, and ``scan`` runs it and its derivative over time.
"""

from lstm_jax.sequence.fused.graph import StepGraph
from lstm_jax.sequence.fused.scan import ScanConfig, block_size, fused_scan

__all__ = ["ScanConfig", "StepGraph", "block_size", "fused_scan"]
