"""Lets requests wait for the next change as coroutines: blocking queries, long polls, event streams.

`watchers` holds all who wait in this process, and is woken by the `commits` of any process.
`blocking_queries` are those who wait for one answer: a question (`held_request`) is asked anew when the
change has come. `event_streams` want each event, from the tail of the log (`event_tail`).
All of it runs on the server's event loop; only the database is read in a thread.
"""
