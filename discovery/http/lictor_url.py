"""Where Lictor answers, unless LICTOR_URL says otherwise."""

DEFAULT_LICTOR_URL = "http://127.0.0.1:8080"
