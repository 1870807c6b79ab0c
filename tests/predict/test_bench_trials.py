"""One member on the bench: what it is taught is what it is calibrated on; and what is kept of inputs."""

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


def test_inputs_of_the_adapters_at_hand_are_kept_and_others_as_far_as_there_is_room(monkeypatch):
    dataset, model = planted_dataset(40), MODELS["ridge"](size=4)
    structure = dataset.structure(range(40))
    size = sum(array.nbytes for array in model.inputs(dataset.samples[:10], structure).values())
    monkeypatch.setattr("lorascope.predict.bench.measures.ROOM", int(3.5 * size))
    features, made = Features(model), []

    def asked(part, *, is_plain):
        """Whether the inputs of ten samples are worked out, and not kept."""
        view, before = f"{part} {is_plain}", len(made)
        samples = [sample._replace(read=lambda s=sample: made.append(view) or s.read()) for sample in dataset.samples]
        features.of(view, samples[10 * part : 10 * part + 10], structure, is_plain=is_plain)
        return len(made) > before

    assert [asked(part, is_plain=True) for part in (0, 1, 2, 0, 3)] == [True, True, True, False, True]
    assert [asked(part, is_plain=True) for part in (0, 2, 3, 1)] == [False, False, False, True]
    assert [asked(part, is_plain=False) for part in (0, 1, 2, 3, 0)] == [True, True, True, True, False]
    monkeypatch.setattr("lorascope.predict.bench.measures.ROOM", 0)
    features = Features(model)
    assert [asked(part, is_plain=True) for part in (0, 1, 0, 1, 2, 0)] == [True, True, False, False, True, True]
