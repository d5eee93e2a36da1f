"""A sandbox killed before, during and after every call out of every story."""

import random

import pytest

from tests.faults import stories
from tests.faults.breaks import AT_ONE_CALL
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


@pytest.mark.parametrize("name", AT_ONE_CALL)
def test_crash_points_find_each_break_at_one_call(name: str) -> None:
    story = STORIES["receipt: capped, until it is given up"]
    failure = AwsError("ThrottlingException")

    with AT_ONE_CALL[name].made():
        to_aws = [at for at, call in enumerate(stories.calls(story)) if "blip." not in call]
        assert any(stories.killed_at(story, point) for point in stories.points(story)) or any(
            stories.failed_at(story, number, failure) for number in to_aws
        )
