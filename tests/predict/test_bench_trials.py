"""One member on the bench: what it is taught is what it is calibrated on."""

import numpy as np

from lorascope.predict import MODELS
from lorascope.predict.bench.contenders import Contender
from lorascope.predict.bench.measures import Features, Trial
from lorascope.predict.bench.question import Question, Structures
from lorascope.predict.intervals import calibrate
from planted import planted_dataset


def test_the_shuffled_baseline_is_calibrated_on_the_labels_that_it_was_taught():
    dataset, model = planted_dataset(40), MODELS["ridge"](size=4)
    structures = Structures(dataset)
    question = Question.of(dataset, "size", structures)
    trial = Trial(Contender("shuffled", model, "baseline", is_shuffled=True), question, Features(model), structures, 0)
    _, trained, _ = trial.fitted
    taught, true = (
        calibrate(question.target, [trained], encoded, question.names(question.taught))
        for encoded in (question.shuffled(0).encoded, question.encoded)
    )
    assert np.array_equal(trial.predictor.intervals.values, taught.values)
    assert not np.array_equal(taught.values, true.values)
