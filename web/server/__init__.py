"""The ASGI application that gunicorn runs: kept answers and requests that wait on the loop, Flask in threads.

`front` answers each request in one of three ways: from what is kept, as a coroutine that waits for a
commit, or by the Flask application in a thread. `worker` and `protocol` make uvicorn end what takes
too long.
"""
