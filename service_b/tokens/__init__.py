"""Who may ask service B for what: tokens, their roles, and the devices that they are for.

A token is a secret that a client sends with each request. We keep its SHA-256 alone, in a file that names for each
token whose it is (`name`), what it may do (`roles`), for which devices, and until when. Several tokens may have one
name: so a client changes its token without losing sight of its tasks, which carry the name.

| role | may |
| --- | --- |
| `submit` | submit tasks of its devices |
| `read` | see those of its own tasks that are of its devices |
| `operate` | see all tasks of its devices |
| `admin` | all of this, for every device |

What a token may not see answers as what does not exist.
"""
