"""``/v1/responses``: OpenAI's newer path for chats, as far as nothing of it has to be kept between two requests.

A response is a chat by other names: it is read into one, and what that writes is told in items and typed events.
"""

from lorary.adapters.server.responses.routes import routes

__all__ = ["routes"]
