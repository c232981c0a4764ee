"""Which tasks a step tries."""

from collections import Counter

from palestra.trainer.curriculum import Curriculum


def curriculum(**settings: float) -> Curriculum:
    options = {"per_step": 8, "revisit": 0.5, **settings}
    return Curriculum(1000, per_step=int(options["per_step"]), revisit=options["revisit"], seed=3)


def test_a_step_has_distinct_tasks_and_the_same_seed_draws_the_same() -> None:
    first, second = curriculum(), curriculum()
    for step in range(5):
        for each in (first, second):
            for task in range(20):
                each.record(task, [0.0, 1.0])
        drawn = first.draw(step)
        assert len(set(drawn)) == len(drawn) == 8
        assert drawn == second.draw(step)
    assert first.draw(1) != first.draw(2)


def test_a_share_comes_from_tasks_that_were_not_always_solved() -> None:
    tasks = curriculum()
    for task in range(100):
        tasks.record(task, [1.0, 0.0] if task < 10 else [1.0, 1.0])
    for step in range(20):
        assert sum(task < 10 for task in tasks.draw(step)) >= 4
        assert sum(task >= 10 for task in tasks.draw(step)) >= 3


def test_tasks_return_in_proportion_to_their_failures() -> None:
    tasks = curriculum(per_step=1, revisit=1.0)
    tasks.record(0, [1.0, 1.0, 1.0, 0.0])
    tasks.record(1, [0.0, 0.0, 0.0, 1.0])
    counts = Counter(tasks.draw(step)[0] for step in range(2000))
    assert set(counts) == {0, 1}
    assert 0.72 < counts[1] / 2000 < 0.78


def test_a_task_that_is_solved_at_last_is_left_alone_and_no_score_is_no_news() -> None:
    tasks = curriculum(per_step=1, revisit=1.0)
    tasks.record(5, [0.0])
    tasks.record(5, [])
    assert tasks.draw(1) == [5]
    tasks.record(5, [1.0, 1.0])
    assert any(tasks.draw(step) != [5] for step in range(5))


def test_without_revisiting_every_task_is_as_likely_and_few_tasks_are_all_drawn() -> None:
    tasks = curriculum(revisit=0.0)
    tasks.record(7, [0.0])
    assert sum(7 in tasks.draw(step) for step in range(200)) < 10
    assert sorted(Curriculum(3, per_step=8, revisit=1.0, seed=0).draw(1)) == [0, 1, 2]
