"""The baselines of text models, against counts by hand."""

import numpy as np
import pytest

from common.ngrams import Pairs, baselines, bigram, perplexity, unigram


def pairs(*sequences):
    tokens = np.array(sequences, np.int64)
    return Pairs(tokens[:, :-1], tokens[:, 1:])


# Of four classes: the pairs 01, 10, 01, 12; after them 1 twice, 0 and 2 once.
TRAIN = pairs([0, 1, 0], [0, 1, 2])


def test_a_unigram_is_a_smoothed_share_of_what_comes():
    test = pairs([0, 0, 1, 2, 3])
    assert unigram(TRAIN, test, 4, 0.5) == pytest.approx(np.array([1.5, 2.5, 1.5, 0.5]) / 6)


def test_a_bigram_takes_a_discount_and_spreads_it_by_how_many_words_come_before():
    # Distinct pairs are 01, 10, 12: each of 0, 1 and 2 follows one word. Lower order, k = 1:
    # 2/7, 2/7, 2/7, 1/7. After 0 (twice, one follower): max(2 - D, 0)/2 and D/2 to spread.
    found = bigram(TRAIN, pairs([0, 1, 2], [0, 3, 0]), 4, 1.0, 0.5)
    assert found == pytest.approx(
        [
            1.5 / 2 + 0.5 / 2 * 2 / 7,  # 0 1
            0.5 / 2 + 0.5 * 2 / 2 * 2 / 7,  # 1 2
            0.5 / 2 * 1 / 7,  # 0 3
            2 / 7,  # 3 0: nothing is known after 3.
        ]
    )


@pytest.mark.parametrize("before", range(4))
def test_the_probabilities_after_a_token_sum_to_one(before):
    test = pairs(*([before, after] for after in range(4)))
    assert bigram(TRAIN, test, 4, 0.3, 0.7).sum() == pytest.approx(1)
    assert unigram(TRAIN, test, 4, 0.3).sum() == pytest.approx(1)


def test_perplexity_of_equal_choices_is_their_number():
    assert perplexity(np.full(7, 1 / 5)) == pytest.approx(5)


def test_bigrams_know_an_order_that_unigrams_do_not():
    train = pairs(*([0, 1, 2, 3, 0] for _ in range(40)))
    found = baselines(train, pairs([0, 1, 2, 3, 0]), 4)
    assert found["unigram"] == pytest.approx(4, rel=1e-3)
    assert 1 < found["bigram"] < 1.05
