"""An interrupt says what is kept, and SIGTERM is one."""

import os
import signal

import pytest

from robostack.common.interrupt import Interrupted, Terminated, ends_as_interrupt, saying


def test_an_interrupt_says_what_is_kept() -> None:
    with pytest.raises(Interrupted, match="7 episodes are in data"), saying(lambda: "7 episodes are in data"):
        raise KeyboardInterrupt


def test_what_is_nearest_to_the_work_says_it() -> None:
    with pytest.raises(Interrupted, match="inner"), saying("outer"), saying("inner"):
        raise KeyboardInterrupt


def test_other_errors_and_success_pass() -> None:
    with saying("kept"):
        pass
    with pytest.raises(ValueError, match="bad"), saying("kept"):
        raise ValueError("bad")


def test_a_request_to_end_is_an_interrupt() -> None:
    with pytest.raises(Interrupted, match="kept") as caught, ends_as_interrupt(), saying("kept"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert isinstance(caught.value.__cause__, Terminated)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
