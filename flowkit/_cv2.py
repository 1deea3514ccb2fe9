"""The one import of OpenCV, which names the ways out where its system libraries are missing."""

from flowkit.errors import InstallError

try:
    import cv2
except ImportError as error:
    raise InstallError(
        f"OpenCV cannot be imported ({error}): either install its system libraries "
        "(Debian: apt-get install libgl1 libglib2.0-0 libxcb1), or take the build that needs none: "
        "pip uninstall -y opencv-contrib-python && pip install opencv-contrib-python-headless"
    ) from error

__all__ = ["cv2"]
