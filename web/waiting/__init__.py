"""Lets requests wait for the next change as coroutines: blocking queries, long polls, event streams.

`watchers` holds all who wait in this process, and is woken by the `commits` of any process.
`blocking_queries` wait for one answer: the request (`held_request`) is asked again after a change.
`event_streams` want each event, from the tail of the log (`event_tail`).
All of it runs on the server's event loop; only the database is read in a thread.
"""
