"""HTTP side of longtake: API, contract of a video job, storage, client and command line. Never imports torch."""

__version__ = "0.1.0"
