"""The scheduler runs of every chunk what it should, at the step it was meant for."""

import numpy as np
import pytest

from robostack.runtime.chunks import ChunkScheduler, newest_chunk, temporal_ensemble


def run(scheduler: ChunkScheduler, steps: int, chunk_len: int) -> tuple[list[float], list[int]]:
    """Actions, and the steps at which a chunk was asked for; a chunk says for each step: 100 · its own start + step."""
    actions, asked = [], []
    for step in range(steps):
        if scheduler.due:
            asked.append(step)
            scheduler.put((100.0 * step + np.arange(step, step + chunk_len))[:, None])
        actions.append(float(scheduler.next()[0]))
    return actions, asked


def test_the_newest_chunk_is_run_until_the_next_is_due() -> None:
    actions, asked = run(ChunkScheduler(3), steps=8, chunk_len=5)
    assert asked == [0, 3, 6]
    assert actions == [0, 1, 2, 303, 304, 305, 606, 607]


def test_an_ensemble_weighs_every_chunk_that_speaks_of_the_step_by_its_age() -> None:
    """Held against ACT's own bookkeeping: a table of all chunks, of which a column is averaged (arXiv 2304.13705)."""
    decay, steps, chunk_len = 0.3, 12, 4
    actions, asked = run(ChunkScheduler(1, temporal_ensemble(decay)), steps, chunk_len)
    assert asked == list(range(steps))
    table = np.full((steps, steps + chunk_len), np.nan)
    for start in range(steps):
        table[start, start : start + chunk_len] = 100.0 * start + np.arange(start, start + chunk_len)
    for step in range(steps):
        said = table[~np.isnan(table[:, step]), step]
        weights = np.exp(-decay * np.arange(len(said)))
        assert actions[step] == pytest.approx((said * weights).sum() / weights.sum())


def test_an_ensemble_of_no_decay_is_the_mean_and_of_a_large_one_the_oldest_chunk() -> None:
    said = np.array([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    assert temporal_ensemble(0.0)(said) == pytest.approx(said.mean(0))
    assert temporal_ensemble(50.0)(said) == pytest.approx(said[0])
    assert newest_chunk(said) is not None and newest_chunk(said).tolist() == [6.0, 60.0]


def test_a_new_episode_knows_nothing_of_the_last() -> None:
    scheduler = ChunkScheduler(2, temporal_ensemble())
    first = run(scheduler, 5, 4)
    scheduler.reset()
    assert run(scheduler, 5, 4) == first


def test_a_step_without_a_chunk_is_an_error() -> None:
    scheduler = ChunkScheduler(3)
    with pytest.raises(RuntimeError, match="no chunk reaches step 0"):
        scheduler.next()
    scheduler.put(np.zeros((2, 1)))
    scheduler.next()
    scheduler.next()
    with pytest.raises(RuntimeError, match="no chunk reaches step 2"):
        scheduler.next()
    for wrong, message in ((lambda: ChunkScheduler(0), "at least 1"), (lambda: temporal_ensemble(-1.0), "negative")):
        with pytest.raises(ValueError, match=message):
            wrong()


@pytest.mark.parametrize(("execute_len", "ages"), [(1, (0,)), (3, (0,)), (3, (0, 2, 4)), (5, (0, 1)), (2, (0, 3))])
def test_it_is_looked_at_the_steps_that_a_chunk_is_made_from_and_no_others(execute_len: int, ages: tuple) -> None:
    scheduler, looked, needed = ChunkScheduler(execute_len), set(), set()
    for step in range(30):
        if scheduler.wants_observation(iter(ages)):
            looked.add(step)
        if scheduler.due:
            needed |= {step - age for age in ages if step >= age}
            scheduler.put(np.zeros((execute_len, 1)))
        scheduler.next()
    assert {step for step in looked if step < 20} == {step for step in needed if step < 20}


def test_a_chunk_that_was_late_moves_the_steps_that_are_looked_at() -> None:
    scheduler, asked = ChunkScheduler(3), []
    for step in range(12):
        asked.append(scheduler.wants_observation([0]))
        if step in (0, 5, 8, 11):  # due at 3, put at 5
            scheduler.put(np.zeros((6, 1)))
        scheduler.next()
    assert asked == [step in (0, 3, 4, 5, 8, 11) for step in range(12)]
