"""The gain over lengths, of studies by themselves and of their seeds together."""

import pytest

from experiments.results.compare.gain import STUDIES, TOGETHER, gains, together


def test_seeds_of_one_setting_are_paired_together():
    folders = TOGETHER["0.36M, all seeds"]
    apart, both = [gains((folder,)) for folder in folders], together(folders)
    for length, one in enumerate(both):
        counts = [own[length].seeds for own in apart]
        means = [own[length].result.mean for own in apart]
        assert one.seeds == sum(counts)
        weighted = sum(n * mean for n, mean in zip(counts, means, strict=True)) / one.seeds
        assert one.result.mean == pytest.approx(weighted)


@pytest.mark.parametrize(
    "folders",
    [
        ("scaling/bytes-0.1m-20", "scaling/bytes-0.1m-200"),
        ("scaling/bytes-0.1m-20", "scaling/bytes-0.3m-20"),
        ("ablation", "ablation"),
    ],
)
def test_other_settings_and_the_same_seeds_are_refused(folders: tuple[str, str]):
    with pytest.raises(ValueError, match="not of one setting and other seeds"):
        together(folders)


def test_every_study_of_the_picture_has_a_length():
    assert all(gains(of) for of in STUDIES.values())


def test_branches_have_the_rate_of_the_longest_and_longest_runs_their_own():
    assert [one.own for one in gains(("ablation",))] == [False, False, True]
    joined = gains(("onset/0.1m-128", "onset/0.1m-560"))
    assert [one.own for one in joined] == [True, True]
    assert [round(one.length, 1) for one in joined] == [1.1, 5.0]
