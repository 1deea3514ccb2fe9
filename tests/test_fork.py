"""A process forked beside OpenCV's threads can use OpenCV: what every loader's worker does."""

import os
import time

import numpy as np
import pytest

from flowkit._cv2 import cv2


def ends_in_time(pid: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return False


@pytest.mark.slow
def test_forked_processes_do_not_wait_for_threads_they_do_not_have():
    """Without the end of the threads before a fork, about one child in twenty hangs."""
    image = np.zeros((1500, 1500, 3), np.uint8)
    threads = 2
    cv2.setNumThreads(threads)
    for _ in range(100):
        cv2.GaussianBlur(image, (9, 9), 2)  # has the threads work
        pid = os.fork()
        if pid == 0:
            cv2.setNumThreads(1)
            cv2.GaussianBlur(image, (9, 9), 2)
            os._exit(0)
        assert ends_in_time(pid)
    assert cv2.getNumThreads() == threads
    cv2.setNumThreads(1)
