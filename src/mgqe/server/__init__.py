"""An HTTP server of look-ups and top-K from a collection; ``pip install 'mgqe[serve]'``."""

from mgqe.server.application import make_app
from mgqe.server.run import serve

__all__ = ["make_app", "serve"]
