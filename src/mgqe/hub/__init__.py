"""Tables, collections and models as folders with a card, here and on Hugging Face's hub."""

from mgqe.hub.folder import from_pretrained, save_pretrained
from mgqe.hub.push import push_to_hub

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]
