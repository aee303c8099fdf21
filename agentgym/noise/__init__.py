"""Graders that err: noise for experiments, appeals that measure it, and the rates that correct for it."""

from agentgym.noise.estimate import AppealCounts, EstimatedRates, Interval, RateEstimator
from agentgym.noise.rates import Rates, RateTable
from agentgym.noise.review import Appeals, Case, FlipNoise, Review, TrustedGrader

__all__ = [
    "AppealCounts",
    "Appeals",
    "Case",
    "EstimatedRates",
    "FlipNoise",
    "Interval",
    "RateEstimator",
    "RateTable",
    "Rates",
    "Review",
    "TrustedGrader",
]
