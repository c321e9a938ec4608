"""The contract of a video job: what is asked, what is made, and how it is kept in Redis."""
