"""flowkit: optical flow for action recognition, from videos to a two-stream model."""

__version__ = "0.1.0"
