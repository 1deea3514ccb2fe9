"""Pairs of frames for the tests of flow: textures that are moved, and frames of real clips."""

import numpy as np

from flowkit._cv2 import cv2

# Clips and the first frame of a pair: static, slow, fast and with a moving camera, two of each.
REAL_PAIRS = [
    ("ucf101/PlayingGuitar/v_PlayingGuitar_g22_c04.avi", 5),
    ("ucf101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c05.avi", 5),
    ("ucf101/BenchPress/v_BenchPress_g01_c03.avi", 52),
    ("jhmdb10/brush_hair/red_head_brush_hair_u_cm_np1_le_goo_2.avi", 5),
    ("ucf101/BoxingSpeedBag/v_BoxingSpeedBag_g04_c04.avi", 101),
    ("ucf101/HammerThrow/v_HammerThrow_g10_c03.avi", 86),
    ("ucf101/ThrowDiscus/v_ThrowDiscus_g02_c04.avi", 5),
    ("jhmdb10/push/Push_That_Car!_push_f_cm_np1_ri_med_0.avi", 20),
]


def texture(height: int, width: int, *, seed: int = 0, grain: float = 2) -> np.ndarray:
    """Random gray blobs of about `grain` px, uint8 (height, width)."""
    noise = np.random.default_rng(seed).normal(size=(height + 32, width + 32))
    smooth = cv2.GaussianBlur(noise, (0, 0), grain)[16:-16, 16:-16]
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def shifted(frame: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """The frame moved right by dx and down by dy px."""
    height, width = frame.shape
    move = np.float32([[1, 0, dx], [0, 1, dy]])
    return cv2.warpAffine(
        frame, move, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
