"""Adapters to knowledge: fit a model on a zoo, measure it honestly, and predict for adapters never seen."""

from lorascope.predict.dataset import Dataset, Sample
from lorascope.predict.explanation import Explanation
from lorascope.predict.fitting import fit_predictor
from lorascope.predict.model import MODELS, FittedModel, Model
from lorascope.predict.prediction import Prediction
from lorascope.predict.predictor import Predictor
from lorascope.predict.targets import Target

__all__ = [
    "MODELS",
    "Dataset",
    "Explanation",
    "FittedModel",
    "Model",
    "Prediction",
    "Predictor",
    "Sample",
    "Target",
    "fit_predictor",
]
