import numpy as np
import pytest

from peaks_and_gates import vqa
from peaks_and_gates.errors import BadParameter
from peaks_and_gates.vqa import normalised, vqa_accuracy


def people(matches, answer="red"):
    return [answer] * matches + [f"other {index}" for index in range(10 - matches)]


def check_the_published_scale():
    """Ten choose nine by hand: two matches leave 1/3 in the two subsets that lack one of them and 2/3 in eight."""
    found = vqa_accuracy(["red"] * 6, [people(matches) for matches in (0, 1, 2, 3, 4, 10)])
    np.testing.assert_allclose(found, [0, 0.3, 0.6, 0.9, 1, 1])


def test_the_published_scale():
    check_the_published_scale()


def nobody_left_out(answer, references):
    return min(1.0, sum(text == answer for text in references) / 3)


def the_one_left_out_still_counts(answer, references):
    return float(np.mean([nobody_left_out(answer, references) for _ in references]))


@pytest.mark.parametrize("fault", [nobody_left_out, the_one_left_out_still_counts])
def test_the_scale_fails_without_leaving_one_out(monkeypatch, fault):
    monkeypatch.setattr(vqa, "_accuracy", fault)
    with pytest.raises(AssertionError):
        check_the_published_scale()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("don't", "don't"),
        ("girl's", "girl's"),
        ("its", "its"),
        ("2:50 pm", "2:50 pm"),
        ("100,978", "100978"),
        ("3.5", "3.5"),
        ("It is 3.", "it is 3"),
        ("U.S.", "us"),
        ("Two dogs and an apple", "2 dogs and apple"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("The", ""),
        ("T-shirt", "t shirt"),
        ("yes!", "yes"),
        ("red, blue", "red blue"),
        ("black/white", "black white"),
        ("red-blue - green", "redblue green"),
        ("1,000-2,000", "10002000"),
        ("  a\nred\tball\r\n", "red ball"),
        ("", ""),
    ],
)
def test_answers_are_normalised(answer, expected):
    assert normalised(answer) == expected


def test_both_sides_are_normalised():
    assert vqa_accuracy(["2 dogs", "Two dogs!"], [["two dogs."] * 10, ["2 Dogs"] * 10]).tolist() == [1, 1]


def test_fewer_than_ten_references_are_matched_exactly():
    found = vqa_accuracy(["a red one", "red", "blue"], [["Red 1"], ["reddish"], ["green", "Blue."]])
    assert found.tolist() == [1, 0, 1] and found.dtype == np.float64


def test_each_answer_meets_its_own_references():
    assert vqa_accuracy(["red", "blue"], [["blue"], ["red"]]).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("answers", "references", "message"),
    [
        ([["red"]], ["red"], "references given first"),
        ("red", [["red"]], "references given first"),
        (["red"], ["red"], "example 0 must be a list"),
        (["red", "blue"], [["red"], []], "example 1 must be a list"),
        (["red"], [[{"answer": "red"}]], "example 0 must be a list"),
        (["red", "blue"], [["red"]], "2 answers for 1 lists"),
        ([], [], "0 answers"),
    ],
)
def test_what_cannot_be_compared_is_refused(answers, references, message):
    with pytest.raises(BadParameter, match=message):
        vqa_accuracy(answers, references)
