"""Small video files with tracks in them: a texture that moves as the class says."""

from made_videos import moving_texture, write_video

STEPS = {"left": (-2, 0), "down": (0, 2), "right": (2, 1)}


def write_clips(folder, *, count=18, each=1, size=(64, 80)):
    """Videos <folder>/<class>/v_<class>_gNN_c01.avi that move as their class says."""
    for name, step in STEPS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(each):
            frames = moving_texture(count, size=size, step=step, seed=k)
            write_video(folder / name / f"v_{name}_g{k + 1:02d}_c01.avi", frames, "ffv1",
                        pixel_format="bgr0")  # fmt: skip
    return folder
