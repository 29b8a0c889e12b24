"""Whether answers are as sure as they are right, on episodes of real images: what a user of the learner gets."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from datasets.episodes import Episodes, make_episodes
from methods.evaluation.exams import Exam
from methods.metalearners.base import Metalearner
from methods.metalearners.calibration import calibration_error, held_out, least_logit, temperature_for
from methods.metalearners.learner import Learner
from utils.images import take

EPISODES = 50  # of an exam, which are enough for a number that is read with two digits
REFUSED = 0.1  # of its own images that a classifier may call none of these


def first_episodes(exam: Exam, learner: Learner) -> Iterator[Episodes]:
    """The first episodes of an exam, one by one, prepared for the learner."""
    device = learner.device
    images, (support, query) = exam.split.images.to(device), exam.indices
    for pair in zip(support[:EPISODES].to(device).split(1), query[:EPISODES].to(device).split(1), strict=True):
        drawn_support, drawn_query = (learner.prepare(take(images, some)) for some in pair)
        yield make_episodes(drawn_support, drawn_query, exam.shape.way)


@torch.no_grad()
def one_shot_temperature(learner: Learner, metalearner: Metalearner, episodes: Iterable[Episodes], steps: int) -> float:
    """The temperature of answers after one image a class, where nothing can be held out: that of other episodes' queries."""
    answers = [_answers(learner, metalearner, episode, steps) for episode in episodes]
    return temperature_for(torch.cat([logits for logits, _ in answers]), torch.cat([labels for _, labels in answers]))


@torch.no_grad()
def calibration(
    learner: Learner, metalearner: Metalearner, episodes: Iterable[Episodes], steps: int, one_shot: float
) -> dict[str, float]:
    """How far confidence and accuracy lie apart on the queries: `before` and `after` a temperature, as expected errors.

    The temperature is `one_shot`, or what the images that are held out of a support say. With two or more images a class also
    how often a query of a class that was shown is called none of these (`own_refused`), and one of a class that was left out
    is not (`strangers_taken`).
    """
    before, after, labels, refused, taken = [], [], [], [], []
    params = learner.frozen
    for episode in episodes:
        logits, own = _answers(learner, metalearner, episode, steps)
        support, support_labels, way = episode.support[0], episode.support_labels[0], episode.way
        kept, kept_labels = held_out(metalearner, params, support, support_labels, way, steps)
        temperature = temperature_for(kept, kept_labels) if len(kept) else one_shot
        before.append(logits.softmax(1))
        after.append((logits / temperature).softmax(1))
        labels.append(own)
        if len(kept) and way > 2:
            shown, asked = support_labels < way - 1, own < way - 1
            fewer = Episodes(support[None, shown], support_labels[None, shown], episode.query, episode.query_labels, way - 1)
            best = _answers(learner, metalearner, fewer, steps)[0].max(1).values
            part = held_out(metalearner, params, support[shown], support_labels[shown], way - 1, steps)
            least = least_logit(*part, REFUSED)
            refused.append(best[asked] < least)
            taken.append(best[~asked] >= least)
    every = torch.cat(labels)
    found = {
        "confidence": float(torch.cat(before).max(1).values.double().mean()),
        "before": calibration_error(torch.cat(before), every),
        "after": calibration_error(torch.cat(after), every),
    }
    if refused:
        found |= {"own_refused": float(torch.cat(refused).double().mean())}
        found |= {"strangers_taken": float(torch.cat(taken).double().mean())}
    return found


def _answers(learner: Learner, metalearner: Metalearner, episode: Episodes, steps: int) -> tuple[Tensor, Tensor]:
    """Logits (N*Q, N) and labels (N*Q,) of the queries of one episode."""
    support, labels, query = episode.support[0], episode.support_labels[0], episode.query[0]
    logits = metalearner.answer(learner.frozen, support, labels, query, episode.way, steps)
    return logits.detach(), episode.query_labels[0]
