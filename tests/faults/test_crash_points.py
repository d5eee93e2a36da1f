"""A sandbox killed before, during and after every call out of every story."""

import random

import pytest

from tests.faults import stories
from tests.faults.breaks import IN_STORIES, Break
from tests.faults.stories import STORIES, Story
from tests.support.simulated_aws.dynamodb import AwsError


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())
def test_kill_at_any_call_loses_nothing_and_sends_nothing_twice(story: Story) -> None:
    broken = {
        str(point): problems
        for point in stories.points(story)
        if (problems := stories.killed_at(story, point))
    }

    assert broken == {}


def test_two_kills_in_a_row_lose_nothing_and_send_nothing_twice() -> None:
    chance = random.Random(3)
    broken = {}
    for name, story in STORIES.items():
        points = list(stories.points(story))
        for first, second in zip(*(chance.choices(points, k=8) for _ in range(2)), strict=True):
            if problems := stories.killed_at(story, first, second):
                broken[f"{name}: {first}, {second}"] = problems

    assert broken == {}


@pytest.mark.parametrize(("story", "broken"), IN_STORIES.values(), ids=IN_STORIES)
def test_story_finds_its_break(story: str, broken: Break) -> None:
    with broken.made(), pytest.raises(AssertionError):
        find_a_loss(STORIES[story])


def find_a_loss(story: Story) -> None:
    """Run a story with each of its calls failing, and with its sandbox killed at each of them.

    Raises:
        AssertionError: something was lost, or sent twice, or never ends.
    """
    failure = AwsError("ThrottlingException")
    for number, call in enumerate(stories.calls(story)):
        if "blip." not in call:
            assert not stories.failed_at(story, number, failure)
    for point in stories.points(story):
        assert not stories.killed_at(story, point)


def test_story_of_a_break_has_no_loss_without_it() -> None:
    find_a_loss(STORIES["receipt: capped, until it is given up"])
